// Modules: page sources and memory types in shared objects of their own, behind the C interface of uffda-module.h.
//
//   auto loaded = uffda::load_module("./tape.so");
//   auto memory = uffda::map("mod:tape?path=/backup/monday");
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "uffda/deadline.h"
#include "uffda/result.h"

namespace uffda {

struct ModuleOptions {
  /// A call into the module that takes longer has failed. Fetches have the deadline of the engine (EngineOptions), too;
  /// the earlier one counts.
  Duration deadline = std::chrono::seconds(30);
  /// Run the module in a process of its own that the kernel confines (no network, no new processes, no file open for
  /// writing): its crash fails what it serves and nothing else. Bytes are copied twice more on their way.
  bool isolate = false;
  /// The uffda command, which that process runs. Empty: this program if it is called uffda, else uffda on PATH.
  std::string command;
};

/// What a module has added.
struct ModuleInfo {
  std::string file;                  ///< as it was given
  std::vector<std::string> sources;  ///< NAME of mod:NAME
  std::vector<std::string> types;    ///< for MapOptions::type
};

/// Loads a module and registers what it has: sources as mod:NAME, memory types under their names for engines that are
/// created afterwards. Modules stay until the process ends. `file` without a '/' is looked for in the working
/// directory. Threads: any. Errors, which name the file: not_found, invalid_argument (not a module, or what it
/// registers breaks the interface), already_exists (a name that is taken), timed_out, gone (isolate: its process died).
Result<ModuleInfo> load_module(const std::string& file, const ModuleOptions& options = {});

/// All that are loaded.
std::vector<ModuleInfo> loaded_modules();

/// Makes the scheme mod: known before any module is loaded, so that its error says what to do. Threads: any.
void register_module_scheme();

}  // namespace uffda
