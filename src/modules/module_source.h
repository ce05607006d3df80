// A page source that stands in a module.
#pragma once

#include <memory>
#include <string>

#include "modules/ops.h"
#include "uffda/page_source.h"

namespace uffda::modules {

/// Opens it. `label` is the module's; `name` the source's in messages. Errors: what the module says, timed_out,
/// invalid_argument (its properties make no sense).
Result<std::unique_ptr<PageSource>> open_module_source(const std::shared_ptr<SourceKind>& kind,
                                                       const std::string& label, const std::string& name,
                                                       const Arguments& arguments, Duration deadline);

}  // namespace uffda::modules
