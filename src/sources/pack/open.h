// Packs by name: for the commands that make and inspect them, and for the scheme and the layer.
#pragma once

#include <string>
#include <string_view>

#include "sources/pack/chain.h"

namespace uffda::pack {

/// Whether `text` is a URI of a source that is registered, and not a path (which may have a ':' in it, too).
bool is_source_uri(std::string_view text);
/// The URI of what a person wrote: a path or a URI.
std::string source_uri(std::string_view path_or_uri);

/// The chain of the pack that a person named: a path, a source of its bytes (`https://...`), or `pack:`, `pack+...`.
/// Errors: as Chain::open, open_source.
Result<Chain> open_chain(std::string_view path_or_uri);
/// The same without its base, which need not be there.
Result<Pack> open_top(std::string_view path_or_uri);

}  // namespace uffda::pack
