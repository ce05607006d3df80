#include "sources/builtin.h"

namespace uffda::sources {

std::vector<SourceScheme> builtin_schemes() { return {file_scheme(), zero_scheme()}; }

std::vector<SourceLayer> builtin_layers() { return {}; }

}  // namespace uffda::sources
