// The command line, taken apart: what the user asked for, as plain data. Nothing is opened, run or printed here.
#pragma once

#include <sys/types.h>

#include <map>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "cli/assignment.h"
#include "cli/criu_commands.h"
#include "cli/limits.h"
#include "cli/operate_commands.h"
#include "cli/pack_commands.h"
#include "cli/put.h"
#include "cli/qemu_commands.h"
#include "uffda/deadline.h"
#include "uffda/units.h"

namespace uffda::cli {

/// Modules to load: files.
struct Modules {
  std::vector<std::string> files;
  bool isolate = false;
};

/// What a server records and fetches of its own accord.
struct Fill {
  std::string record;
  std::string prefetch;
  bool no_prefetch = false;
  bool populate = false;
  std::optional<ByteCount> rate;
};

struct ExecCommand {
  std::vector<Assignment> maps;
  std::string server;  ///< socket of a running server; empty: start one
  bool kill_on_error = false;
  bool preload = true;
  std::string report;
  Limits limits;
  Modules modules;
  Fill fill;
  std::vector<std::string> program;
};

struct ServeCommand {
  std::vector<Assignment> exports;
  std::map<std::string, ByteCount> export_budgets;  ///< by name, of exports that have one
  std::string socket;                               ///< for clients of the handoff protocol; empty: none
  std::string firecracker;                          ///< for VMs of Firecracker; empty: none
  bool hugepages = false;
  bool activated = false;         ///< on the sockets that a service manager passes
  std::set<std::string> killing;  ///< exports, by name, whose clients are killed for what cannot be had
  int ready_fd = -1;
  bool until_idle = false;
  bool holder = false;
  bool takeover = false;
  std::vector<uid_t> allow_uids;
  std::string report;
  Limits limits;
  Modules modules;
  Fill fill;
};

struct MountCommand {
  Assignment map;
  std::string server;
  std::string report;
  Limits limits;
  Modules modules;
  Fill fill;
};

struct ProbeCommand {
  bool json = false;
};

/// `uffda module check FILE [mod:NAME?KEY=VALUE...]`
struct ModuleCheckCommand {
  std::string file;
  std::map<std::string, std::string> arguments;  ///< NAME -> what stands behind the '?'
  std::optional<Duration> deadline;
  bool isolate = false;
};

/// `uffda module host FILE`: the process of an isolated module, which only uffda itself starts.
struct ModuleHostCommand {
  std::string file;
};

struct VersionCommand {
  bool json = false;
};

/// The user asked how: text for standard output.
struct HelpText {
  std::string text;
};

/// The command line is wrong: text for standard error that says what to write instead.
struct UsageError {
  std::string text;
};

using Command = std::variant<ExecCommand, ServeCommand, MountCommand, ModuleCheckCommand, ModuleHostCommand, PutCommand,
                             AttachCommand, AttachProcessCommand, StatsCommand, QemuSaveCommand, QemuRestoreCommand,
                             CriuCommand, ProbeCommand, PackCommand, UnpackCommand, InspectCommand, VerifyCommand,
                             VersionCommand, HelpText, UsageError>;

/// `arguments` are those after the program's own name. Everything after the first "--" is the program of `exec`, word
/// for word. Source URIs are checked for their form and scheme, not opened.
Command parse_command_line(const std::vector<std::string>& arguments);

}  // namespace uffda::cli
