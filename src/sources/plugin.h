// Sources that need a library of their own (libnbd, libcurl, librados).
//
// Linking those into the command would cost every start 23 ms and 60 shared objects. Each such source is a shared
// object instead, uffda-NAME.so, which is loaded when a URI first asks for it. It is a part of uffda, built with it
// from src/plugins/NAME, and speaks the C++ interface of page_source.h: both sides must be of one build, which is
// checked. For sources from elsewhere there is the C ABI of uffda-module.h.
#pragma once

#include <memory>
#include <string>

#include "uffda/source_registry.h"

namespace uffda::sources {

/// What uffda-NAME.so exports as `uffda_source_plugin`. Constant.
struct SourcePlugin {
  const char* build;  ///< kPluginBuild of the plugin
  Result<std::unique_ptr<PageSource>> (*open)(const SourceUri& uri);
  Result<std::unique_ptr<SourceWriter>> (*create)(const SourceUri& uri, const StoreOptions&);  ///< null: read only
};

/// Equal for what was built together.
#define UFFDA_PLUGIN_BUILD UFFDA_VERSION " " __VERSION__
inline constexpr const char* kPluginSymbol = "uffda_source_plugin";

/// The plugin NAME, loaded on first use and never unloaded. Looked for in the directory of the environment variable
/// UFFDA_PLUGINS (not in a set-uid program), beside the running program in plugins/ and in ../lib/uffda/plugins of it,
/// and where this build installs it. Threads: any. Errors: not_found (says where it was looked for), invalid_argument
/// (of another build; cannot be loaded).
Result<const SourcePlugin*> load_plugin(const std::string& name);

/// For SourceScheme::open and ::create of a scheme that lives in a plugin.
std::function<Result<std::unique_ptr<PageSource>>(const SourceUri&)> open_in_plugin(std::string name);
std::function<Result<std::unique_ptr<SourceWriter>>(const SourceUri&, const StoreOptions&)> create_in_plugin(
    std::string name);

}  // namespace uffda::sources
