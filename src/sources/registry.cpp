#include <algorithm>
#include <map>
#include <ranges>

#include "base/log.h"
#include "base/mutex.h"
#include "sources/builtin.h"

namespace uffda {

namespace {

/// Entries by name.
template <typename Entry>
class Table {
 public:
  Result<void> add(Entry entry) {
    std::string name = entry.name;
    const ExclusiveLock lock(mutex_);
    if (!entries_.try_emplace(name, std::move(entry)).second) {
      return fail(Errc::already_exists, "'" + name + "' is registered already");
    }
    return {};
  }

  /// A copy, so that no lock is held while it is used.
  std::optional<Entry> find(std::string_view name) {
    const SharedLock lock(mutex_);
    const auto found = entries_.find(name);
    if (found == entries_.end()) return std::nullopt;
    return found->second;
  }

  std::vector<Entry> all() {
    const SharedLock lock(mutex_);
    std::vector<Entry> entries;
    for (const auto& [name, entry] : entries_) entries.push_back(entry);
    return entries;
  }

 private:
  SharedMutex mutex_;
  std::map<std::string, Entry, std::less<>> entries_ UFFDA_GUARDED_BY(mutex_);
};

/// The built-in entries and those that were added. Never destroyed: sources may be opened while static objects go away.
Table<SourceScheme>& schemes() {
  static auto* const table = [] {
    auto* const filled = new Table<SourceScheme>;
    for (auto& scheme : sources::builtin_schemes()) UFFDA_ASSERT(filled->add(std::move(scheme)).has_value());
    return filled;
  }();
  return *table;
}

Table<SourceLayer>& layers() {
  static auto* const table = [] {
    auto* const filled = new Table<SourceLayer>;
    for (auto& layer : sources::builtin_layers()) UFFDA_ASSERT(filled->add(std::move(layer)).has_value());
    return filled;
  }();
  return *table;
}

template <typename Entries>
std::string names_of(const Entries& entries) {
  std::string names;
  for (const auto& entry : entries) names += (names.empty() ? "" : ", ") + entry.name;
  return names;
}

bool valid_part(std::string_view name) {
  const auto letter = [](char c) { return c >= 'a' && c <= 'z'; };
  return !name.empty() && letter(name.front()) && std::ranges::all_of(name, [&](char c) {
    return letter(c) || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
  });
}

bool valid_name(std::string_view name) {
  const std::size_t plus = name.find('+');
  if (plus == std::string_view::npos) return valid_part(name);
  return valid_part(name.substr(0, plus)) && valid_part(name.substr(plus + 1));
}

/// The parts that a URI names, all of them known.
struct Stack {
  SourceScheme scheme;
  std::vector<SourceLayer> layers;  ///< outermost first
};

Result<Stack> look_up(const SourceUri& uri) {
  auto scheme = schemes().find(uri.scheme());
  if (!scheme) {
    return fail(Errc::not_found, "unknown source '" + uri.scheme() + ":'; known are " + names_of(source_schemes()));
  }
  Stack stack{*std::move(scheme), {}};
  for (const std::string& name : uri.layers()) {
    auto layer = layers().find(name);
    if (!layer) return fail(Errc::not_found, "unknown layer '" + name + "+'; known are " + names_of(source_layers()));
    stack.layers.push_back(*std::move(layer));
  }
  return stack;
}

Result<void> check_parameters(const SourceUri& uri, const Stack& stack) {
  std::vector<std::string> known;
  const auto add = [&](const std::vector<SourceParameterHelp>& parameters) {
    for (const auto& parameter : parameters) {
      if (std::ranges::find(known, parameter.key) == known.end()) known.push_back(parameter.key);
    }
  };
  add(stack.scheme.parameters_of ? stack.scheme.parameters_of(uri) : stack.scheme.parameters);
  for (const SourceLayer& layer : stack.layers) add(layer.parameters);
  for (const auto& parameter : uri.parameters()) {
    if (std::ranges::find(known, parameter.key) != known.end()) continue;
    std::string text = "unknown parameter '" + parameter.key + "'; ";
    if (known.empty()) return fail(Errc::invalid_argument, text + "'" + uri.scheme() + ":' takes none");
    text += "known here are";
    for (const std::string& key : known) text += (key == known.front() ? " " : ", ") + key;
    return fail(Errc::invalid_argument, text);
  }
  return {};
}

Result<std::unique_ptr<PageSource>> open_stack(const SourceUri& uri) {
  const Stack stack = UFFDA_TRY(look_up(uri));
  UFFDA_TRY_VOID(check_parameters(uri, stack));
  std::unique_ptr<PageSource> source = UFFDA_TRY(stack.scheme.open(uri));
  for (const SourceLayer& layer : std::views::reverse(stack.layers)) {
    source = UFFDA_TRY(layer.wrap(std::move(source), uri));
  }
  return source;
}

}  // namespace

Result<void> register_source(SourceScheme scheme) {
  if (!valid_name(scheme.name)) return fail(Errc::invalid_argument, "bad scheme name: expected [a-z][a-z0-9._-]*");
  if (!scheme.open) return fail(Errc::invalid_argument, "scheme '" + scheme.name + "' has no open function");
  return schemes().add(std::move(scheme));
}

Result<void> register_source_layer(SourceLayer layer) {
  if (!valid_part(layer.name)) return fail(Errc::invalid_argument, "bad layer name: expected [a-z][a-z0-9._-]*");
  if (!layer.wrap) return fail(Errc::invalid_argument, "layer '" + layer.name + "' has no wrap function");
  return layers().add(std::move(layer));
}

std::vector<SourceScheme> source_schemes() { return schemes().all(); }
std::vector<SourceLayer> source_layers() { return layers().all(); }

Result<SourceUri> parse_source_uri(std::string_view text) {
  SourceUri uri = UFFDA_TRY(SourceUri::parse(text));
  // A scheme's name may have two parts, and then its first one looks like a layer.
  if (!uri.layers().empty() && schemes().find(uri.layers().back() + "+" + uri.scheme())) uri.merge_scheme();
  return uri;
}

Result<std::unique_ptr<PageSource>> open_source(std::string_view uri, OpenFor what_for) {
  SourceUri parsed = UFFDA_TRY(parse_source_uri(uri));
  parsed.set_what_for(what_for);
  std::unique_ptr<PageSource> source = UFFDA_TRY(open_stack(parsed));
  if (what_for != OpenFor::reading && !source->properties().writable)
    return fail(Errc::unsupported, source->name() + ": this source can only be read");
  if (what_for == OpenFor::growing && !source->properties().growable)
    return fail(Errc::unsupported, source->name() + ": this source keeps its size: map it with rw");
  return source;
}

Result<std::unique_ptr<SourceWriter>> create_source(std::string_view text, const StoreOptions& options) {
  const SourceUri uri = UFFDA_TRY(parse_source_uri(text));
  const Stack stack = UFFDA_TRY(look_up(uri));
  if (!stack.layers.empty()) return fail(Errc::invalid_argument, "layers are for reading: name the source alone");
  if (!stack.scheme.create) return fail(Errc::unsupported, "'" + uri.scheme() + ":' can be read and not stored to");
  UFFDA_TRY_VOID(check_parameters(uri, stack));
  return stack.scheme.create(uri, options);
}

}  // namespace uffda
