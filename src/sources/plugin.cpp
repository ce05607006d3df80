#include "sources/plugin.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <vector>

#include "base/mutex.h"

namespace uffda::sources {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> places() {
  std::vector<fs::path> directories;
  if (const char* const given = ::secure_getenv("UFFDA_PLUGINS"); given != nullptr && *given != 0)
    directories.emplace_back(given);
  std::error_code unknown;
  const fs::path program = fs::read_symlink("/proc/self/exe", unknown);
  if (!unknown) {
    directories.push_back(program.parent_path() / "plugins");
    directories.push_back((program.parent_path() / "../lib/uffda/plugins").lexically_normal());
  }
  directories.emplace_back(UFFDA_PLUGIN_DIRECTORY);
  return directories;
}

Result<const SourcePlugin*> open_plugin(const fs::path& file) {
  void* const object = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (object == nullptr) {
    const char* const why = ::dlerror();
    return fail(Errc::invalid_argument, why != nullptr ? why : file.string() + ": dlopen failed");
  }
  const auto* const plugin = static_cast<const SourcePlugin*>(::dlsym(object, kPluginSymbol));
  if (plugin == nullptr) return fail(Errc::invalid_argument, file.string() + ": it is not a source of uffda");
  if (std::strcmp(plugin->build, UFFDA_PLUGIN_BUILD) != 0) {
    return fail(Errc::invalid_argument,
                fmt::format("{}: it is of build {}, and this is {}: install both from one build", file.string(),
                            plugin->build, UFFDA_PLUGIN_BUILD));
  }
  return plugin;
}

Result<const SourcePlugin*> find_plugin(const std::string& name) {
  std::vector<std::string> looked;
  for (const fs::path& directory : places()) {
    const fs::path file = directory / ("uffda-" + name + ".so");
    std::error_code unknown;
    if (fs::exists(file, unknown)) return open_plugin(file);
    looked.push_back(directory.string());
  }
  return fail(Errc::not_found,
              fmt::format("{0}: needs uffda-{0}.so, which is in none of {1}: build uffda where the library of {0} is "
                          "installed, or name the directory in UFFDA_PLUGINS",
                          name, fmt::join(looked, ", ")));
}

}  // namespace

Result<const SourcePlugin*> load_plugin(const std::string& name) {
  static Mutex mutex;
  static auto* const loaded = new std::map<std::string, const SourcePlugin*>;
  const MutexLock lock(mutex);
  if (const auto found = loaded->find(name); found != loaded->end()) return found->second;
  const SourcePlugin* const plugin = UFFDA_TRY(find_plugin(name));
  loaded->emplace(name, plugin);
  return plugin;
}

std::function<Result<std::unique_ptr<PageSource>>(const SourceUri&)> open_in_plugin(std::string name) {
  return [name = std::move(name)](const SourceUri& uri) -> Result<std::unique_ptr<PageSource>> {
    return UFFDA_TRY(load_plugin(name))->open(uri);
  };
}

std::function<Result<std::unique_ptr<SourceWriter>>(const SourceUri&, const StoreOptions&)> create_in_plugin(
    std::string name) {
  return [name = std::move(name)](const SourceUri& uri,
                                  const StoreOptions& options) -> Result<std::unique_ptr<SourceWriter>> {
    const SourcePlugin* const plugin = UFFDA_TRY(load_plugin(name));
    if (plugin->create == nullptr) return fail(Errc::unsupported, uri.scheme() + ": can be read and not stored to");
    return plugin->create(uri, options);
  };
}

}  // namespace uffda::sources
