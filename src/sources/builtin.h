// The sources and layers that are always there. A static library drops objects that nobody names, so they are listed,
// not self-registered: a new one adds its declaration here and its line in builtin.cpp.
#pragma once

#include <vector>

#include "uffda/source_registry.h"

namespace uffda::sources {

SourceScheme file_scheme();
SourceScheme http_scheme();
SourceScheme https_scheme();
SourceScheme pack_scheme();
SourceScheme rados_scheme();
SourceScheme s3_scheme();
SourceScheme zero_scheme();
std::vector<SourceScheme> nbd_schemes();  // and nbds, and both on UNIX sockets

SourceLayer cache_layer();
SourceLayer cow_layer();
SourceLayer delay_layer();
SourceLayer error_layer();
SourceLayer evict_layer();
SourceLayer log_layer();
SourceLayer pack_layer();

std::vector<SourceScheme> builtin_schemes();
std::vector<SourceLayer> builtin_layers();

}  // namespace uffda::sources
