// Text that teaches to copy: strings of no meaning that come again, in other surroundings. A small model learns from it to take a
// name out of its context, one it has never seen too, which English text alone does not teach in a few million tokens.
#pragma once

#include <string>

#include "fulgur/base/random.h"

namespace fulgur {

// A document of some lines. No string in it is one of those that only fresh tasks have (is_fresh).
std::string drill(RandomStream& random);

}  // namespace fulgur
