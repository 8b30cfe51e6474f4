// What `fulgur adapt` found, from the record of its run (kept.h has the figures): tables, and the card of the model it made.
#pragma once

#include <string>

#include "fulgur/base/json.h"
#include "fulgur/model/config.h"

namespace fulgur {

std::string adapt_tables(const Json& record);
std::string model_card(const ModelConfig& config, const Json& record);

}  // namespace fulgur
