// Storing to file:PATH.
#pragma once

#include "uffda/source_registry.h"

namespace uffda::sources {

/// The file gets its name when it is complete and on the disk. Errors: invalid_argument (no path, not a plain file),
/// already_exists, and what the file system says.
Result<std::unique_ptr<SourceWriter>> create_file(const SourceUri& uri, const StoreOptions& options);

}  // namespace uffda::sources
