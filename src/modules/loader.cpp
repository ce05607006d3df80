#include "modules/loader.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>

#include "memtypes/added.h"
#include "memtypes/builtin.h"
#include "modules/module_source.h"
#include "modules/module_type.h"
#include "modules/remote.h"
#include "uffda/source_registry.h"

namespace uffda {
namespace modules {
namespace {

struct Loaded {
  ModuleInfo info;
  std::string label;
  Duration deadline;
  Offers offers;
};

/// Never destroyed: sources are opened while static objects go away.
struct Table {
  Mutex mutex;
  std::vector<std::shared_ptr<const Loaded>> list UFFDA_GUARDED_BY(mutex);
};

Table& table() {
  static auto* const modules = new Table;
  return *modules;
}

std::vector<std::shared_ptr<const Loaded>> all() {
  const MutexLock lock(table().mutex);
  return table().list;
}

struct Found {
  std::shared_ptr<const Loaded> module;
  std::shared_ptr<SourceKind> source;
};

Result<Found> find_source(const std::string& name) {
  std::vector<std::string> names;
  for (const auto& module : all()) {
    for (const auto& source : module->offers.sources) {
      if (source->about().name == name) return Found{.module = module, .source = source};
      names.push_back(source->about().name);
    }
  }
  if (names.empty())
    return fail(Errc::not_found, fmt::format("mod:{}: no module with sources is loaded: give --module FILE", name));
  return fail(Errc::not_found,
              fmt::format("mod:{}: no loaded module has this source; there are {}", name, fmt::join(names, ", ")));
}

bool is_secret(std::string_view key) {
  constexpr std::array<std::string_view, 5> kWords{"password", "secret", "token", "key", "credential"};
  return std::ranges::any_of(kWords, [&](std::string_view word) { return key.find(word) != std::string_view::npos; });
}

/// The URI for messages and reports.
std::string public_name(const std::string& name, const Arguments& arguments) {
  std::string text = "mod:" + name;
  char separator = '?';
  for (const auto& [key, value] : arguments) {
    text += fmt::format("{}{}={}", separator, key, is_secret(key) ? "..." : value);
    separator = '&';
  }
  return text;
}

Result<std::unique_ptr<PageSource>> open_uri(const SourceUri& uri) {
  const Found found = UFFDA_TRY(find_source(uri.rest()));
  Arguments arguments;
  for (const SourceParameterHelp& parameter : found.source->about().parameters) {
    if (const std::string* value = uri.find(parameter.key)) arguments.emplace_back(parameter.key, *value);
  }
  return open_module_source(found.source, found.module->label, public_name(uri.rest(), arguments), arguments,
                            found.module->deadline);
}

std::vector<SourceParameterHelp> parameters_of(const SourceUri& uri) {
  const auto found = find_source(uri.rest());
  return found ? found->source->about().parameters : std::vector<SourceParameterHelp>{};
}

/// Everything that can be refused is refused before anything is registered.
Result<void> check_names(const Offers& offers, const std::string& label, Duration deadline) {
  std::vector<std::string> names;
  for (const auto& source : offers.sources) {
    const std::string& name = source->about().name;
    if (find_source(name) || std::ranges::find(names, name) != names.end())
      return fail(Errc::already_exists, fmt::format("source {} is there already", name));
    names.push_back(name);
  }
  MemoryTypes types;
  UFFDA_TRY_VOID(register_builtin_types(types));
  for (const auto& type : offers.types) UFFDA_TRY_VOID(types.register_type(make_module_type(type, label, deadline)));
  return {};
}

std::string path_of(const std::string& file) {
  return file.find('/') == std::string::npos ? "./" + file : file;  // dlopen looks elsewhere for bare names
}

}  // namespace

std::string label_of(const std::string& file) { return "module " + std::filesystem::path(file).filename().string(); }

Result<Arguments> parse_arguments(const std::string& text) {
  if (text.empty()) return Arguments{};
  const SourceUri uri = UFFDA_TRY(SourceUri::parse("mod:x?" + text));
  Arguments arguments;
  for (const auto& [key, value] : uri.parameters()) arguments.emplace_back(key, value);
  return arguments;
}

Result<Offers> read_offers(const std::string& file, const ModuleOptions& options) {
  const std::string label = label_of(file);
  if (options.isolate) return load_remote(path_of(file), label, options);
  Calls calls(label, 1, Calls::Lost::all);
  const auto offers = UFFDA_TRY(make_in_time<Offers>(
      calls, "load", options.deadline,
      [path = path_of(file), label]() -> Result<std::shared_ptr<Offers>> {
        return std::make_shared<Offers>(UFFDA_TRY(load_direct(path, label)));
      },
      [](Offers&) {}));
  return std::move(*offers);
}

}  // namespace modules

Result<ModuleInfo> load_module(const std::string& file, const ModuleOptions& options) {
  using namespace modules;
  register_module_scheme();
  auto module = std::make_shared<Loaded>();
  module->label = label_of(file);
  module->deadline = options.deadline;
  module->info.file = file;
  module->offers = UFFDA_TRY(read_offers(file, options));
  for (const auto& source : module->offers.sources) module->info.sources.push_back(source->about().name);
  for (const auto& type : module->offers.types) module->info.types.push_back(type->about().name);
  static Mutex one_at_a_time;
  const MutexLock lock(one_at_a_time);
  if (auto free = check_names(module->offers, module->label, options.deadline); !free)
    return std::unexpected(free.error().within(module->label));
  for (const auto& type : module->offers.types) {
    UFFDA_TRY_VOID(add_memory_type([type, label = module->label, deadline = options.deadline] {
      return make_module_type(type, label, deadline);
    }));
  }
  const MutexLock table_lock(table().mutex);
  table().list.push_back(module);
  return module->info;
}

std::vector<ModuleInfo> loaded_modules() {
  std::vector<ModuleInfo> infos;
  for (const auto& module : modules::all()) infos.push_back(module->info);
  return infos;
}

void register_module_scheme() {
  // Refused after the first time: it is there already.
  [[maybe_unused]] const auto added =
      register_source({.name = "mod",
                       .syntax = "mod:NAME",
                       .help = "the source NAME of a module (--module FILE); its parameters are the module's",
                       .parameters = {},
                       .open = modules::open_uri,
                       .parameters_of = modules::parameters_of});
}

}  // namespace uffda
