#include "cli/operate_commands.h"

#include <fmt/format.h>

#include <charconv>

#include "cli/help.h"

namespace uffda::cli {
namespace {

template <typename T>
Result<T> number_of(std::string_view option, const std::string& text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc{} && end == text.data() + text.size() && value >= 0) return value;
  return fail(Errc::invalid_argument, fmt::format("{} {}: a number is needed", option, text));
}

}  // namespace

void add_operate_commands(CLI::App& root, OperateTexts& texts) {
  CLI::App& attach = *root.add_subcommand(
      "attach", "Serves a process whose userfaultfd handler has died; without --map: shows what could be named");
  const auto text = [](CLI::App& app, const char* name, std::string& value, const char* type, const char* help) {
    app.add_option(name, value, help)->type_name(type);
  };
  text(attach, "--pid", texts.pid, "PID", "the process that waits");
  text(attach, "--fd", texts.fd, "FD", "the number of its userfaultfd in /proc/PID/fd");
  attach
      .add_option("--map", texts.maps,
                  "[START, END) of its memory (hexadecimal) shows this source from OFFSET on; may be repeated")
      ->type_name("START-END=URI[@OFFSET]")
      ->allow_extra_args(false);
  text(attach, "--regions", texts.regions, "FILE", "instead: its memory in the words of Firecracker's handshake");
  text(attach, "--source", texts.source, "URI", "with --regions: what they show");
  attach.add_flag("--force", texts.force, "although other processes have the userfaultfd open, too");
  text(attach, "--socket", texts.socket, "PATH", "where to listen for uffda stats");
  attach.add_flag("--holder", texts.holder, "a small process beside the server starts it again when it is killed");
  text(attach, "--on-error", texts.on_error, "poison|kill", "a page that cannot be had: SIGBUS, or SIGKILL");
  text(attach, "--report", texts.report, "FILE", "write counts and latencies as JSON at the end");
  text(attach, "--ready-fd", texts.ready_fd, "FD", "write a line to this descriptor when the process is served");
  set_help(attach, {.usage = "uffda attach --pid PID --fd FD --map START-END=URI[@OFFSET] [options]",
                    .example = "uffda attach --pid 4711 --fd 9 --map 7f0000000000-7f0040000000=file:vm.mem",
                    .sources = true});
  CLI::App& stats = *root.add_subcommand("stats", "Shows what a running server has counted, client by client");
  text(stats, "--socket", texts.socket, "PATH",
       "where the server listens (with --protocol firecracker: its --control)");
  stats.add_flag("--json", texts.json, "for programs");
  set_help(stats, {.usage = "uffda stats --socket PATH [--json]",
                   .example = "uffda stats --socket /run/uffda.sock",
                   .sources = false});
}

Result<AttachProcessCommand> attach_process_command(const OperateTexts& texts, const Result<Limits>& limits) {
  if (!limits) return std::unexpected(limits.error());
  if (texts.pid.empty() || texts.fd.empty())
    return fail(Errc::invalid_argument, "whose memory? give --pid PID and --fd FD (a number of /proc/PID/fd)");
  AttachProcessCommand command{.regions = texts.regions,
                               .source = texts.source,
                               .force = texts.force,
                               .socket = texts.socket,
                               .holder = texts.holder,
                               .report = texts.report,
                               .limits = *limits};
  command.pid = UFFDA_TRY(number_of<pid_t>("--pid", texts.pid));
  command.fd = UFFDA_TRY(number_of<int>("--fd", texts.fd));
  if (!texts.ready_fd.empty()) command.ready_fd = UFFDA_TRY(number_of<int>("--ready-fd", texts.ready_fd));
  for (const std::string& text : texts.maps) command.maps.push_back(UFFDA_TRY(parse_attach_map(text)));
  if (texts.regions.empty() != texts.source.empty())
    return fail(Errc::invalid_argument, "--regions FILE says where, and --source URI what: give both");
  if (!command.maps.empty() && !texts.regions.empty())
    return fail(Errc::invalid_argument, "--map and --regions: give one of them");
  if (texts.on_error != "poison" && texts.on_error != "kill")
    return fail(Errc::invalid_argument, fmt::format("--on-error {}: write poison or kill", texts.on_error));
  command.kill_on_error = texts.on_error == "kill";
  return command;
}

Result<StatsCommand> stats_command(const OperateTexts& texts) {
  if (texts.socket.empty()) return fail(Errc::invalid_argument, "of which server? give --socket PATH");
  return StatsCommand{.socket = texts.socket, .json = texts.json};
}

}  // namespace uffda::cli
