#include "sources/pack/open.h"

#include <sys/stat.h>

#include <algorithm>
#include <optional>

#include "sources/builtin.h"
#include "sources/pack/pack_source.h"
#include "uffda/source_registry.h"

namespace uffda::pack {
namespace {

constexpr std::string_view kName = "pack";

/// As it is written in a URI.
std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '%') {
      out += "%25";
    } else if (c == '?') {
      out += "%3F";
    } else if (c == '&') {
      out += "%26";
    } else {
      out += c;
    }
  }
  return out;
}

/// Where the bytes of a pack are: a URI in parts, to find the bytes of its bases by.
struct BytesUri {
  std::vector<std::string> layers;
  std::string scheme;
  std::string rest;
  std::vector<SourceUri::Parameter> parameters;

  [[nodiscard]] std::string text() const {
    std::string out;
    for (const std::string& layer : layers) out += layer + "+";
    out += scheme + ":" + escaped(rest);
    for (const auto& [key, value] : parameters) {
      out.append(&key == &parameters.front().key ? "?" : "&").append(key).append("=").append(escaped(value));
    }
    return out;
  }

  [[nodiscard]] BytesUri sibling(const std::string& name) const {
    BytesUri other = *this;
    const std::size_t slash = rest.rfind('/');
    other.rest = slash == std::string::npos ? name : rest.substr(0, slash + 1) + name;
    return other;
  }
};

/// The parameters of a URI that this scheme and these layers know; the others are somebody else's.
std::vector<SourceUri::Parameter> known_parameters(const SourceUri& uri, const BytesUri& bytes) {
  std::vector<SourceParameterHelp> known;
  const auto add = [&](const std::vector<SourceParameterHelp>& more) {
    known.insert(known.end(), more.begin(), more.end());
  };
  for (const SourceScheme& scheme : source_schemes()) {
    if (scheme.name == bytes.scheme) add(scheme.parameters_of ? scheme.parameters_of(uri) : scheme.parameters);
  }
  for (const SourceLayer& layer : source_layers()) {
    if (std::ranges::find(bytes.layers, layer.name) != bytes.layers.end()) add(layer.parameters);
  }
  std::vector<SourceUri::Parameter> kept;
  std::ranges::copy_if(uri.parameters(), std::back_inserter(kept), [&](const SourceUri::Parameter& one) {
    return std::ranges::find(known, one.key, &SourceParameterHelp::key) != known.end();
  });
  return kept;
}

/// `pack:x` and `delay+pack+file:x` are both packs whose bytes are `file:x`; `file:x` is itself the bytes of one.
BytesUri bytes_of(const SourceUri& uri) {
  BytesUri bytes{.layers = uri.layers(), .scheme = uri.scheme(), .rest = uri.rest(), .parameters = {}};
  if (uri.scheme() == kName) {
    bytes.layers.clear();
    bytes.scheme = "file";
  }
  const auto innermost = std::find(bytes.layers.rbegin(), bytes.layers.rend(), kName);
  bytes.layers.erase(bytes.layers.begin(), innermost.base());
  bytes.parameters = known_parameters(uri, bytes);
  return bytes;
}

bool is_directory(const std::string& path) {
  struct stat status{};
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

/// Where the base of `pack` is, which is the `depth`-th of its chain: where ?base= says, else beside the pack.
Result<std::string> base_uri(const BytesUri& bytes, const std::optional<std::string>& given, const Pack& pack,
                             std::size_t depth) {
  if (!given) return bytes.sibling(pack.base_name).text();
  if (is_directory(*given)) return source_uri(*given + "/" + pack.base_name);
  // A file is the base of the pack that was asked for. The base's own base lies beside the base.
  const std::string first = source_uri(*given);
  if (depth == 0) return first;
  return bytes_of(UFFDA_TRY(parse_source_uri(first))).sibling(pack.base_name).text();
}

Chain::OpenBase base_opener(const SourceUri& uri) {
  std::optional<std::string> given;
  if (const std::string* base = uri.find("base")) given = *base;
  return [bytes = bytes_of(uri), given](const Pack& pack, std::size_t depth) -> Result<std::unique_ptr<PageSource>> {
    auto opened = open_source(UFFDA_TRY(base_uri(bytes, given, pack, depth)));
    if (opened) return opened;
    return std::unexpected(opened.error().within(pack.name + ": its base (if it is elsewhere, say so with base=PATH)"));
  };
}

Result<std::unique_ptr<PageSource>> open_pack_scheme(const SourceUri& uri) {
  const std::string name = "pack:" + uri.rest();
  if (uri.rest().empty()) return fail(Errc::invalid_argument, "pack: needs a path, such as pack:disk.pack");
  auto file = UFFDA_TRY(sources::file_scheme().open(uri));
  return make_pack_source(UFFDA_TRY(Chain::open(std::move(file), base_opener(uri))), name);
}

Result<std::unique_ptr<PageSource>> open_pack_layer(std::unique_ptr<PageSource> inner, const SourceUri& uri) {
  const std::string name = "pack+" + inner->name();
  return make_pack_source(UFFDA_TRY(Chain::open(std::move(inner), base_opener(uri))), name);
}

SourceParameterHelp base_help() {
  return {.key = "base",
          .help = "where the base of an incremental pack is: a file or a directory (default: beside it)"};
}

}  // namespace

bool is_source_uri(std::string_view text) {
  const auto uri = parse_source_uri(text);
  if (!uri) return false;
  const std::vector<SourceScheme> schemes = source_schemes();
  return std::ranges::find(schemes, uri->scheme(), &SourceScheme::name) != schemes.end();
}

std::string source_uri(std::string_view path_or_uri) {
  if (is_source_uri(path_or_uri)) return std::string(path_or_uri);
  return "file:" + escaped(path_or_uri);
}

Result<Chain> open_chain(std::string_view path_or_uri) {
  const SourceUri uri = UFFDA_TRY(parse_source_uri(source_uri(path_or_uri)));
  return Chain::open(UFFDA_TRY(open_source(bytes_of(uri).text())), base_opener(uri));
}

Result<Pack> open_top(std::string_view path_or_uri) {
  const SourceUri uri = UFFDA_TRY(parse_source_uri(source_uri(path_or_uri)));
  return open_pack(UFFDA_TRY(open_source(bytes_of(uri).text())));
}

}  // namespace uffda::pack

namespace uffda::sources {

SourceScheme pack_scheme() {
  SourceScheme scheme{.name = "pack",
                      .syntax = "pack:PATH",
                      .help = "a snapshot that uffda pack made",
                      .parameters = file_scheme().parameters,
                      .open = pack::open_pack_scheme};
  scheme.parameters.push_back(pack::base_help());
  return scheme;
}

SourceLayer pack_layer() {
  return {.name = "pack",
          .help = "unpacks a snapshot that uffda pack made, wherever its bytes are",
          .parameters = {pack::base_help()},
          .wrap = pack::open_pack_layer};
}

}  // namespace uffda::sources
