#include "sources/builtin.h"

#include <utility>

namespace uffda::sources {

std::vector<SourceScheme> builtin_schemes() {
  std::vector<SourceScheme> all{file_scheme(),  http_scheme(), https_scheme(), pack_scheme(),
                                rados_scheme(), s3_scheme(),   zero_scheme()};
  for (SourceScheme& scheme : nbd_schemes()) all.push_back(std::move(scheme));
  return all;
}

std::vector<SourceLayer> builtin_layers() {
  return {cache_layer(), cow_layer(), delay_layer(), error_layer(), evict_layer(), log_layer(), pack_layer()};
}

}  // namespace uffda::sources
