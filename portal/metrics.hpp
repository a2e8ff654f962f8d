#pragma once
// Prometheus text exposition format 0.0.4. Pure; any thread.

#include <string>
#include <vector>

#include "portal/gateway_view.hpp"

namespace latchkey::portal {

// HELP and TYPE once for each name, in the order given. Whole values are written without fraction or exponent.
std::string to_prometheus(std::vector<figure> const&);

}  // namespace latchkey::portal
