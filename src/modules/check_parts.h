// The suite's parts: one for each kind that a module can have.
#pragma once

#include <memory>
#include <string>

#include "modules/check.h"
#include "modules/ops.h"

namespace uffda::modules {

void check_source_contract(Suite& suite, const std::shared_ptr<SourceKind>& kind, const std::string& label,
                           const std::string& text, Duration deadline);
void check_type_contract(Suite& suite, const std::shared_ptr<TypeKind>& kind, const std::string& label,
                         Duration deadline);

}  // namespace uffda::modules
