#include "cli/run.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <string_view>

#include "cli/confine.h"
#include "cli/probe_report.h"
#include "criu/dump_source.h"
#include "exec/exec.h"
#include "exec/mount.h"
#include "modules/check.h"
#include "modules/child.h"
#include "os/kernel_abi.h"
#include "server/handoff_wire.h"
#include "server/kept_state.h"
#include "server/serve.h"
#include "uffda/module.h"

namespace uffda::cli {
namespace {

constexpr int kFailed = 1;
constexpr int kUsage = 2;

int write_to(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t done = ::write(fd, text.data(), text.size());
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return kFailed;
    text.remove_prefix(static_cast<std::size_t>(done));
  }
  return 0;
}

int say_failure(std::string_view command, const Error& error, int status) {
  (void)write_to(STDERR_FILENO, fmt::format("uffda {}: {}\n", command, error.message()));
  return status;
}

int status_of(std::string_view command, const Result<int>& result) {
  return result ? *result : say_failure(command, result.error(), kFailed);
}

int run_one(const ExecCommand& command) {
  ExecOptions options;
  for (const Assignment& map : command.maps)
    options.maps.push_back({.path = map.name, .source = map.source, .mode = map.mode});
  options.server_socket = command.server;
  options.on_error = command.kill_on_error ? OnError::kill : OnError::poison;
  options.preload = command.preload;
  options.report_file = command.report;
  options.server_arguments = server_arguments(command.limits, command.modules, command.fill);
  options.program = command.program;
  const Result<int> result = run_exec(options);
  return result ? *result : say_failure("exec", result.error(), exit_status_of(result.error()));
}

OpenFor open_for(MapMode mode) {
  switch (mode) {
    case MapMode::writable:
      return OpenFor::writing;
    case MapMode::growable:
      return OpenFor::growing;
    default:
      return OpenFor::reading;
  }
}

int run_one(const ServeCommand& command) {
  ServeOptions options;
  for (const Assignment& one : command.exports) {
    const auto budget = command.export_budgets.find(one.name);
    options.exports.push_back({.name = one.name,
                               .uri = one.source,
                               .what_for = open_for(one.mode),
                               .budget = budget != command.export_budgets.end() ? budget->second : ByteCount{},
                               .kill = command.killing.contains(one.name),
                               .huge = command.hugepages});
  }
  options.socket_path = command.socket;
  options.firecracker_path = command.firecracker;
  if (!command.firecracker.empty()) options.max_clients = KeptState::kMaxSpaces;  // who is refused never comes again
  options.ready_fd = command.ready_fd;
  options.until_idle = command.until_idle;
  options.holder = command.holder;
  options.takeover = command.takeover;
  options.report_path = command.report;
  options.allow_uids = command.allow_uids;
  options.modules = command.modules.files;
  options.isolate_modules = command.modules.isolate;
  options.record_path = command.fill.record;
  options.prefetch_path = command.fill.prefetch;
  options.prefetch = !command.fill.no_prefetch;
  options.populate = command.fill.populate;
  if (command.fill.rate) options.populate_rate = *command.fill.rate;
  set_limits(options, command.limits);
  if (command.activated) {
    auto passed = passed_sockets();
    if (!passed) return say_failure("serve", passed.error(), kFailed);
    options.passed = *std::move(passed);
  }
  return status_of("serve", run_serve(options));
}

int run_one(const MountCommand& command) {
  MountOptions options{.path = command.map.name,
                       .source = command.map.source,
                       .mode = command.map.mode,
                       .server_socket = command.server,
                       .server_arguments = server_arguments(command.limits, command.modules, command.fill)};
  if (!command.report.empty())
    options.server_arguments.insert(options.server_arguments.end(), {"--report", command.report});
  return status_of("mount", run_mount(options));
}

std::string check_line(const modules::CheckResult& result) {
  using Outcome = modules::CheckResult::Outcome;
  const char* mark = result.outcome == Outcome::passed ? "ok" : result.outcome == Outcome::failed ? "FAIL" : "skip";
  return fmt::format("{:<4}  {}{}{}\n", mark, result.what, result.why.empty() ? "" : ": ", result.why);
}

int run_one(const ModuleCheckCommand& command) {
  using Outcome = modules::CheckResult::Outcome;
  modules::CheckOptions options{.arguments = command.arguments};
  if (command.deadline) options.module.deadline = *command.deadline;
  options.module.isolate = command.isolate;
  unsigned passed = 0;
  unsigned failed = 0;
  unsigned skipped = 0;
  const bool good = modules::check_module(command.file, options, [&](const modules::CheckResult& result) {
    ++(result.outcome == Outcome::passed ? passed : result.outcome == Outcome::failed ? failed : skipped);
    (void)write_to(STDOUT_FILENO, check_line(result));
  });
  (void)write_to(STDOUT_FILENO, fmt::format("{} passed, {} failed, {} skipped\n", passed, failed, skipped));
  return good ? 0 : kFailed;
}

int run_one(const ModuleHostCommand& command) { return modules::run_isolated_module(command.file, confine); }

int run_one(const PackCommand& command) { return status_of("pack", run_pack(command)); }
int run_one(const AttachCommand& command) { return status_of("pack", run_attach(command)); }
int run_one(const UnpackCommand& command) { return status_of("unpack", run_unpack(command)); }
int run_one(const InspectCommand& command) { return status_of("inspect", run_inspect(command)); }
int run_one(const VerifyCommand& command) { return status_of("verify", run_verify(command)); }
int run_one(const CriuCommand& command) { return status_of("criu", run_criu(command)); }
int run_one(const QemuSaveCommand& command) { return status_of("qemu save", run_qemu_save(command)); }
int run_one(const QemuRestoreCommand& command) { return status_of("qemu restore", run_qemu_restore(command)); }
int run_one(const PutCommand& command) { return status_of("put", run_put(command)); }

int run_one(const AttachProcessCommand& command) { return status_of("attach", run_attach_process(command)); }
int run_one(const StatsCommand& command) { return status_of("stats", run_stats(command)); }

int run_one(const ProbeCommand& command) {
  const os::Probe probe = os::probe();
  const std::vector<OfferedType> types = offered_types();
  return write_to(STDOUT_FILENO, command.json ? probe_json(probe, types) : probe_text(probe, types));
}

int run_one(const VersionCommand& command) {
  if (command.json)
    return write_to(STDOUT_FILENO,
                    fmt::format("{{\"uffda\": \"{}\", \"handoff\": {}}}\n", UFFDA_VERSION, handoff::kVersion));
  return write_to(STDOUT_FILENO, fmt::format("uffda {}, handoff protocol {}\n", UFFDA_VERSION, handoff::kVersion));
}

int run_one(const HelpText& help) { return write_to(STDOUT_FILENO, help.text); }

int run_one(const UsageError& error) {
  (void)write_to(STDERR_FILENO, error.text + "\n");
  return kUsage;
}

/// Whole units, so that nothing is lost on the way through a command line.
std::string duration_argument(Duration duration) {
  return fmt::format("{}ns", std::chrono::nanoseconds(duration).count());
}

}  // namespace

void set_limits(ServeOptions& options, const Limits& limits) {
  if (limits.budget) options.budget = *limits.budget;
  if (limits.deadline) options.deadline = *limits.deadline;
  if (limits.warn_after) options.warn_after = *limits.warn_after;
}

std::vector<std::string> server_arguments(const Limits& limits, const Modules& modules, const Fill& fill) {
  std::vector<std::string> words;
  if (limits.budget) words.insert(words.end(), {"--budget", std::to_string(limits.budget->value)});
  if (limits.deadline) words.insert(words.end(), {"--deadline", duration_argument(*limits.deadline)});
  if (limits.warn_after) words.insert(words.end(), {"--warn-after", duration_argument(*limits.warn_after)});
  for (const std::string& file : modules.files) words.insert(words.end(), {"--module", file});
  if (modules.isolate) words.emplace_back("--isolate");
  if (!fill.record.empty()) words.insert(words.end(), {"--record", fill.record});
  if (!fill.prefetch.empty()) words.insert(words.end(), {"--prefetch", fill.prefetch});
  if (fill.no_prefetch) words.emplace_back("--no-prefetch");
  if (fill.populate) words.emplace_back("--populate");
  if (fill.rate) words.insert(words.end(), {"--populate-rate", std::to_string(fill.rate->value)});
  return words;
}

int run(const std::vector<std::string>& arguments) {
  register_module_scheme();  // known to the command line and to help before any module is loaded
  criu::register_criu_sources();
  return std::visit([](const auto& command) { return run_one(command); }, parse_command_line(arguments));
}

}  // namespace uffda::cli
