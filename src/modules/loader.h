// The modules of this process.
#pragma once

#include <memory>
#include <string>

#include "modules/ops.h"
#include "uffda/module.h"

namespace uffda::modules {

/// What a file offers, without registering any of it. Errors: as load_module; they begin with "module NAME".
Result<Offers> read_offers(const std::string& file, const ModuleOptions& options);

/// "module tape.so": what messages call it.
std::string label_of(const std::string& file);

/// "size=1M&seed=2" taken apart. Errors: invalid_argument.
Result<Arguments> parse_arguments(const std::string& text);

}  // namespace uffda::modules
