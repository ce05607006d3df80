#include "cli/qemu_commands.h"

#include <fmt/format.h>

#include <charconv>

#include "cli/help.h"
#include "sources/pack/open.h"
#include "uffda/source_registry.h"

namespace uffda::cli {
namespace {

constexpr std::string_view kHow =
    "write: uffda qemu save --qmp SOCKET OUT.pack, or: uffda qemu restore --qmp SOCKET MACHINE.pack";

void text_option(CLI::App& app, const char* name, std::string& value, const char* type, const char* help) {
  app.add_option(name, value, help)->type_name(type);
}

template <typename Parse, typename Value>
Result<void> read_option(std::string_view option, const std::string& text, Parse parse, Value& value) {
  if (text.empty()) return {};
  auto parsed = parse(text);
  if (!parsed) return std::unexpected(parsed.error().within(option));
  if (*parsed <= Value{}) return fail(Errc::invalid_argument, fmt::format("{}: must be more than 0", option));
  value = *parsed;
  return {};
}

Result<void> refuse(std::string_view option, bool given, std::string_view command) {
  if (!given) return {};
  return fail(Errc::invalid_argument, fmt::format("{} is not for uffda qemu {}", option, command));
}

}  // namespace

void add_qemu_command(CLI::App& root, QemuTexts& texts) {
  CLI::App& app = *root.add_subcommand("qemu", "Saves a running QEMU to a pack, and restores one that fetches its RAM");
  app.add_option("words", texts.words)->group("");
  text_option(app, "--qmp", texts.qmp, "SOCKET",
              "QEMU's monitor: it was started with -qmp unix:SOCKET,server=on,wait=off");
  app.add_flag("--stay-stopped", texts.stay_stopped,
               "save: the machine does not go on, so that its disks can be copied");
  text_option(app, "--level", texts.level, "N", "save: of zstd, 1 to 19 (default: 3)");
  text_option(app, "--state", texts.state, "FILE", "restore: a migration stream of QEMU, saved with x-ignore-shared");
  text_option(app, "--ram", texts.ram, "URI", "restore: the RAM that the stream leaves out");
  text_option(app, "--record", texts.record, "FILE", "restore: write down what is touched, in order: the working set");
  text_option(app, "--prefetch", texts.prefetch, "FILE", "restore: send first what a run with --record touched");
  app.add_flag("--no-prefetch", texts.no_prefetch, "restore: not even what was recorded in a pack");
  text_option(app, "--report", texts.report, "FILE", "restore: write counts as JSON at the end");
  text_option(app, "--budget", texts.budget, "SIZE", "restore: cached pages never take more (default: half of RAM)");
  text_option(app, "--deadline", texts.deadline, "TIME",
              "restore: a page that takes longer is given up (default: 30s). save: for all of it (default: 10m)");
  text_option(app, "--warn-after", texts.warn_after, "TIME",
              "restore: a page that takes longer is reported (default: 5s)");
  set_help(app, {.usage = "uffda qemu save --qmp SOCKET OUT.pack [options]\n"
                          "       uffda qemu restore --qmp SOCKET MACHINE.pack [options]\n"
                          "       uffda qemu restore --qmp SOCKET --state FILE --ram URI [options]",
                 .example = "uffda qemu restore --qmp vm.qmp 'https://backup/machine.pack'",
                 .sources = true});
}

bool is_save(const QemuTexts& texts) { return !texts.words.empty() && texts.words.front() == "save"; }

Result<QemuSaveCommand> qemu_save_command(const QemuTexts& texts) {
  if (texts.words.size() != 2 || texts.qmp.empty()) return fail(Errc::invalid_argument, std::string(kHow));
  UFFDA_TRY_VOID(refuse("--state", !texts.state.empty(), "save"));
  UFFDA_TRY_VOID(refuse("--ram", !texts.ram.empty(), "save"));
  UFFDA_TRY_VOID(refuse("--record", !texts.record.empty(), "save"));
  UFFDA_TRY_VOID(refuse("--prefetch", !texts.prefetch.empty() || texts.no_prefetch, "save"));
  UFFDA_TRY_VOID(refuse("--report", !texts.report.empty(), "save"));
  UFFDA_TRY_VOID(refuse("--budget", !texts.budget.empty(), "save"));
  UFFDA_TRY_VOID(refuse("--warn-after", !texts.warn_after.empty(), "save"));
  QemuSaveCommand command{.options = {.qmp = texts.qmp, .output = texts.words[1], .progress = {}}};
  if (texts.stay_stopped) command.options.afterwards = qemu::Afterwards::stay_stopped;
  UFFDA_TRY_VOID(read_option("--deadline", texts.deadline, parse_duration, command.options.deadline));
  if (!texts.level.empty()) {
    const char* const end = texts.level.data() + texts.level.size();
    const auto [last, error] = std::from_chars(texts.level.data(), end, command.options.level);
    if (error != std::errc{} || last != end)
      return fail(Errc::invalid_argument, fmt::format("--level {}: a number is needed", texts.level));
  }
  return command;
}

Result<QemuRestoreCommand> qemu_restore_command(const QemuTexts& texts) {
  const bool is_stream = !texts.state.empty() || !texts.ram.empty();
  const std::size_t words = is_stream ? 1 : 2;
  if (texts.words.size() != words || texts.words.front() != "restore" || texts.qmp.empty())
    return fail(Errc::invalid_argument, std::string(kHow));
  if (is_stream && (texts.state.empty() || texts.ram.empty()))
    return fail(Errc::invalid_argument, "--state and --ram: give both, or a pack that uffda qemu save made");
  if (texts.no_prefetch && !texts.prefetch.empty())
    return fail(Errc::invalid_argument, "--prefetch and --no-prefetch: give one of them");
  UFFDA_TRY_VOID(refuse("--stay-stopped", texts.stay_stopped, "restore"));
  UFFDA_TRY_VOID(refuse("--level", !texts.level.empty(), "restore"));
  QemuRestoreCommand command{.options = {.qmp = texts.qmp,
                                         .machine = {},
                                         .record = texts.record,
                                         .prefetch = texts.prefetch,
                                         .no_prefetch = texts.no_prefetch,
                                         .core = {}},
                             .report = texts.report};
  if (is_stream) {
    command.options.machine = {.image = {}, .state = texts.state, .ram = pack::source_uri(texts.ram)};
  } else {
    // A path is that of a pack; a URI of whatever has the bytes.
    const std::string& image = texts.words[1];
    command.options.machine.image = pack::is_source_uri(image) ? image : "pack:" + image;
  }
  qemu::RestoreOptions& options = command.options;
  UFFDA_TRY_VOID(read_option("--budget", texts.budget, parse_size, options.core.budget));
  UFFDA_TRY_VOID(read_option("--deadline", texts.deadline, parse_duration, options.core.deadline));
  UFFDA_TRY_VOID(read_option("--warn-after", texts.warn_after, parse_duration, options.core.warn_after));
  return command;
}

}  // namespace uffda::cli
