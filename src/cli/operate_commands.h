// `uffda attach` and `uffda stats`: what one does to servers and clients that run already.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/limits.h"
#include "server/attach.h"
#include "uffda/result.h"

namespace CLI {  // NOLINT(readability-identifier-naming): the name is that of the library CLI11
class App;
}

namespace uffda::cli {

/// START-END=URI[@OFFSET], or a region of a file of them.
struct AttachMap {
  Address start;
  ByteCount length;
  std::string uri;
  ByteOffset offset;
};

/// `uffda attach --pid PID --fd FD`
struct AttachProcessCommand {
  pid_t pid = 0;
  int fd = -1;
  std::vector<AttachMap> maps;
  std::string regions;  ///< a file of Firecracker's words, which show `source`
  std::string source;
  bool force = false;
  std::string socket;  ///< for `uffda stats` and other clients; empty: none
  bool holder = false;
  bool kill_on_error = false;
  std::string report;
  int ready_fd = -1;
  Limits limits;
};

/// `uffda stats --socket PATH`
struct StatsCommand {
  std::string socket;
  bool json = false;
};

/// START-END=URI[@OFFSET]: the addresses are hexadecimal, the offset is a size. What stands behind the last @ is the
/// offset if it is a size, else a part of the URI. Errors: invalid_argument.
Result<AttachMap> parse_attach_map(const std::string& text);

/// A report as tables for people. Errors: protocol (it is none).
Result<std::string> stats_text(std::string_view json);

/// Their option values as they were written.
struct OperateTexts {
  std::string pid, fd, regions, source, socket, report, ready_fd, on_error = "poison";
  std::vector<std::string> maps;
  bool force = false, holder = false, json = false;
};

void add_operate_commands(CLI::App& root, OperateTexts& texts);
/// Errors: invalid_argument: what to write instead.
Result<AttachProcessCommand> attach_process_command(const OperateTexts& texts, const Result<Limits>& limits);
Result<StatsCommand> stats_command(const OperateTexts& texts);

/// Each returns the exit status, or why it failed.
Result<int> run_attach_process(const AttachProcessCommand& command);
Result<int> run_stats(const StatsCommand& command);

}  // namespace uffda::cli
