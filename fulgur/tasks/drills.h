// Text that teaches to copy: strings of no meaning that come again, in other surroundings. A small model learns from it to take a
// name out of its context, one it has never seen too, which English text alone does not teach in a few million tokens. Documents
// are short on purpose: attention sees its own document only, and the first trace of a head that finds "what came before" is
// the fainter the more tokens it has to choose from. Measured in docs/training.md.
#pragma once

#include <string>

#include "fulgur/base/random.h"

namespace fulgur {

// A line of common words or made-up ids, three or four times: what such a head learns from soonest.
std::string repeated_line(RandomStream& random);

// One of those or an exercise: a list again with other signs between, a table, a record, a chain.
// No string in either is one of those that only fresh tasks have (is_fresh).
std::string drill(RandomStream& random);

}  // namespace fulgur
