// What the plugin offers: see SourceScheme.
#pragma once

#include "uffda/source_registry.h"

namespace uffda::sources::rados {

Result<std::unique_ptr<PageSource>> open(const SourceUri& uri);
Result<std::unique_ptr<SourceWriter>> create(const SourceUri& uri, const StoreOptions& options);

}  // namespace uffda::sources::rados
