#include "sources/builtin.h"

namespace uffda::sources {

std::vector<SourceScheme> builtin_schemes() { return {file_scheme(), pack_scheme(), rados_scheme(), zero_scheme()}; }

std::vector<SourceLayer> builtin_layers() { return {delay_layer(), error_layer(), log_layer(), pack_layer()}; }

}  // namespace uffda::sources
