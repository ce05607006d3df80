#include "cli/command_line.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <functional>
#include <span>
#include <string_view>

#include "cli/help.h"
#include "uffda/source_registry.h"

namespace uffda::cli {
namespace {

/// Option values as they were written.
struct Texts {
  std::vector<std::string> maps;
  std::vector<std::string> exports;
  std::vector<std::string> export_budgets;
  std::string map;
  std::string server, socket, report, on_error = "poison";
  std::string protocol = "handoff", control;
  bool hugepages = false;
  std::string budget, deadline, warn_after;
  std::string ready_fd;
  std::vector<std::string> allow_uids;
  std::string record, prefetch, populate_rate;
  bool populate = false, no_prefetch = false;
  bool until_idle = false, holder = false, takeover = false, no_preload = false, json = false, isolate = false;
  std::vector<std::string> modules, module_words;
  std::vector<std::string> put_words;
  bool replace = false;
  std::string topic;
  std::vector<std::string> stray;
  PackTexts pack;
  CriuTexts criu;
  QemuTexts qemu;
  OperateTexts operate;
  bool activated = false;
  std::vector<std::string> on_errors;
};

void add_list(CLI::App& app, const char* name, std::vector<std::string>& values, const char* type, const char* help) {
  app.add_option(name, values, help)->type_name(type)->allow_extra_args(false);
}

void add_text(CLI::App& app, const char* name, std::string& value, const char* type, const char* help) {
  app.add_option(name, value, help)->type_name(type);
}

void add_limits(CLI::App& app, Texts& texts) {
  add_text(app, "--budget", texts.budget, "SIZE",
           "cached pages never take more than this: 512M, 2GiB (default: half of RAM)");
  add_text(app, "--deadline", texts.deadline, "TIME", "a page that takes longer is given up: 5s, 250ms (default: 30s)");
  add_text(app, "--warn-after", texts.warn_after, "TIME", "a page that takes longer is reported (default: 5s)");
}

void add_modules(CLI::App& app, Texts& texts) {
  add_list(app, "--module", texts.modules, "FILE", "load this module: its sources are mod:NAME; may be repeated");
  app.add_flag("--isolate", texts.isolate,
               "modules run in a confined process of their own: a crash fails what they serve");
}

void add_fill(CLI::App& app, Texts& texts) {
  add_text(app, "--record", texts.record, "FILE", "write down what is touched, in order: the working set");
  add_text(app, "--prefetch", texts.prefetch, "FILE", "fetch in the background what a run with --record touched");
  app.add_flag("--no-prefetch", texts.no_prefetch, "not even what was recorded in a pack");
  app.add_flag("--populate", texts.populate, "fetch everything in the background");
  add_text(app, "--populate-rate", texts.populate_rate, "SIZE", "no more than this a second: 100M");
}

void add_exec(CLI::App& root, Texts& texts) {
  CLI::App& app = *root.add_subcommand("exec", "Runs an unmodified program to which PATH is memory that uffda serves");
  add_list(
      app, "--map", texts.maps, "PATH=URI",
      "show this source at PATH, which need not exist; may be repeated. Behind the URI ,rw lets programs write to it, "
      ",grow also move its end, ,cow open it for writing and keep what they map to themselves");
  add_text(app, "--server", texts.server, "SOCKET", "use the server at SOCKET; --map is then PATH=EXPORT");
  add_text(app, "--on-error", texts.on_error, "poison|kill",
           "a page that cannot be had: SIGBUS for who touches it, or the end of the program");
  add_text(app, "--report", texts.report, "FILE", "write counts and latencies as JSON at the end");
  add_limits(app, texts);
  add_modules(app, texts);
  add_fill(app, texts);
  app.add_flag("--no-preload", texts.no_preload, "no shim: mappings go through FUSE as everything else");
  app.add_option("stray", texts.stray)->group("");
  set_help(app,
           {.usage = "uffda exec --map PATH=URI [options] -- PROGRAM [ARGUMENT...]",
            .example =
                "uffda exec --map /data/big.db=file:backup/big.db -- sqlite3 /data/big.db 'select count(*) from files'",
            .sources = true});
}

void add_serve(CLI::App& root, Texts& texts) {
  CLI::App& app = *root.add_subcommand("serve", "Serves named sources to clients on a UNIX socket");
  add_list(
      app, "--export", texts.exports, "NAME=URI",
      "offer this source under NAME; may be repeated. Behind the URI ,rw: clients may write to it; ,grow: and move its "
      "end");
  add_list(app, "--export-budget", texts.export_budgets, "NAME=SIZE",
           "cached pages of this export stay below this, within --budget; may be repeated");
  add_text(app, "--socket", texts.socket, "PATH", "where to listen");
  add_text(app, "--protocol", texts.protocol, "handoff|firecracker",
           "who connects there: uffda's own clients (default), or Firecracker, whose VMs get the one export");
  add_text(app, "--control", texts.control, "PATH",
           "with --protocol firecracker: where to listen for uffda's own clients (--takeover is one)");
  app.add_flag("--hugepages", texts.hugepages, "with --protocol firecracker: the VMs have pages of 2 MiB");
  app.add_flag("--activated", texts.activated,
               "instead of --socket: listen on the sockets that systemd passes, named handoff and firecracker");
  add_list(
      app, "--on-error", texts.on_errors, "[NAME=]poison|kill",
      "a page that cannot be had: SIGBUS for who touches it (default), or the end of that client; of one export or "
      "all; may be repeated");
  add_list(app, "--allow-uid", texts.allow_uids, "UID",
           "let this user in, too (default: the server's own); may be repeated");
  add_text(app, "--report", texts.report, "FILE", "write counts and latencies as JSON at the end");
  add_limits(app, texts);
  add_modules(app, texts);
  add_fill(app, texts);
  add_text(app, "--ready-fd", texts.ready_fd, "FD", "write a line to this descriptor when clients may come");
  app.add_flag("--until-idle", texts.until_idle, "end when the last client is gone");
  app.add_flag("--holder", texts.holder,
               "a small process beside the server starts it again when it is killed; clients notice a pause");
  app.add_flag("--takeover", texts.takeover,
               "take over from the server at --socket, which has a holder: to upgrade it; implies --holder");
  set_help(app, {.usage = "uffda serve --export NAME=URI --socket PATH [options]",
                 .example = "uffda serve --export disk=file:disk.img --socket /run/uffda.sock",
                 .sources = true});
}

void add_mount(CLI::App& root, Texts& texts) {
  CLI::App& app =
      *root.add_subcommand("mount", "Shows a source at PATH to every program, through FUSE, until it is interrupted");
  add_text(app, "--server", texts.server, "SOCKET", "use the server at SOCKET; then PATH=EXPORT");
  add_text(app, "--report", texts.report, "FILE", "write counts and latencies as JSON at the end");
  add_limits(app, texts);
  add_modules(app, texts);
  add_fill(app, texts);
  app.add_option("map", texts.map)->group("");
  set_help(app, {.usage = "uffda mount PATH=URI [options]",
                 .example = "uffda mount /mnt/disk.img=file:backup/disk.img",
                 .sources = true});
}

void add_module(CLI::App& root, Texts& texts) {
  CLI::App& app = *root.add_subcommand("module", "Tests a module: a shared object with sources and memory types");
  add_text(app, "--deadline", texts.deadline, "TIME", "a call into the module that takes longer fails (default: 5s)");
  app.add_flag("--isolate", texts.isolate, "run it in a confined process of its own");
  app.add_option("words", texts.module_words)->group("");
  set_help(app, {.usage = "uffda module check FILE [mod:NAME?KEY=VALUE...] [options]",
                 .example = "uffda module check ./pattern.so 'mod:pattern?size=1M'",
                 .sources = false});
}

void add_put(CLI::App& root, Texts& texts) {
  CLI::App& app =
      *root.add_subcommand("put", "Stores a file, or what any source has, where a source can be opened later");
  app.add_flag("--replace", texts.replace, "what is stored there now is replaced, once the new image is complete");
  add_text(app, "--deadline", texts.deadline, "TIME", "a read of the input that takes longer fails (default: 30s)");
  app.add_option("words", texts.put_words)->group("");
  set_help(app, {.usage = "uffda put INPUT URI [options]     (INPUT: a path, or the URI of a source)",
                 .example = "uffda put disk.img rados:images/disk",
                 .sources = true});
}

void add_criu(CLI::App& root, Texts& texts) {
  CLI::App& app = add_criu_commands(root, texts.criu);
  add_text(app, "--ready-fd", texts.ready_fd, "FD", "write a line to this descriptor when CRIU may connect");
  add_text(app, "--deadline", texts.deadline, "TIME", "a page that takes longer is given up: 5s, 250ms (default: 30s)");
}

void add_small_ones(CLI::App& root, Texts& texts) {
  CLI::App& probe =
      *root.add_subcommand("probe", "Shows what this kernel and your privileges allow, and what to do about each no");
  probe.add_flag("--json", texts.json, "for programs");
  set_help(probe, {.usage = "uffda probe [--json]", .example = "uffda probe", .sources = false});
  CLI::App& version = *root.add_subcommand("version", "Shows the version");
  version.add_flag("--json", texts.json, "for programs");
  set_help(version, {.usage = "uffda version [--json]", .example = "uffda version", .sources = false});
  CLI::App& help = *root.add_subcommand("help", "Shows the help of a command");
  help.add_option("command", texts.topic)->group("");
  set_help(help, {.usage = "uffda help [COMMAND]", .example = "uffda help exec", .sources = false});
}

UsageError usage(const std::string& command, std::string_view problem) {
  return {fmt::format("uffda {}: {}\nuffda help {} shows how it is used", command, problem, command)};
}

template <typename T, typename Parse>
Result<std::optional<T>> optional_value(std::string_view option, const std::string& text, Parse parse) {
  if (text.empty()) return std::optional<T>{};
  auto value = parse(text);
  if (!value) return std::unexpected(value.error().within(option));
  return std::optional<T>(*value);
}

Result<Limits> limits_of(const Texts& texts) {
  Limits limits;
  limits.budget = UFFDA_TRY(optional_value<ByteCount>("--budget", texts.budget, parse_size));
  limits.deadline = UFFDA_TRY(optional_value<Duration>("--deadline", texts.deadline, parse_duration));
  limits.warn_after = UFFDA_TRY(optional_value<Duration>("--warn-after", texts.warn_after, parse_duration));
  if (limits.budget && limits.budget->value == 0) return fail(Errc::invalid_argument, "--budget: must be more than 0");
  if (limits.deadline && *limits.deadline <= Duration::zero())
    return fail(Errc::invalid_argument, "--deadline: must be more than 0");
  return limits;
}

template <typename T>
Result<T> number(std::string_view option, const std::string& text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) {
    return fail(Errc::invalid_argument, fmt::format("{} {}: a number is needed", option, text));
  }
  return value;
}

Result<Fill> fill_of(const Texts& texts) {
  Fill fill{.record = texts.record,
            .prefetch = texts.prefetch,
            .no_prefetch = texts.no_prefetch,
            .populate = texts.populate,
            .rate = {}};
  if (fill.no_prefetch && !fill.prefetch.empty())
    return fail(Errc::invalid_argument, "--prefetch and --no-prefetch: give one of them");
  fill.rate = UFFDA_TRY(optional_value<ByteCount>("--populate-rate", texts.populate_rate, parse_size));
  if (fill.rate && fill.rate->value == 0) return fail(Errc::invalid_argument, "--populate-rate: must be more than 0");
  if (fill.rate && !fill.populate) return fail(Errc::invalid_argument, "--populate-rate is for --populate: give both");
  return fill;
}

/// A server that runs already has its own limits and writes its own report.
Result<void> check_server(const Texts& texts) {
  if (texts.server.empty()) return {};
  if (!texts.modules.empty())
    return fail(Errc::invalid_argument, "with --server modules are that server's: give them to uffda serve");
  if (!texts.record.empty() || !texts.prefetch.empty() || texts.no_prefetch || texts.populate) {
    return fail(Errc::invalid_argument,
                "with --server recording, prefetching and populating are that server's: give them to uffda serve");
  }
  if (texts.budget.empty() && texts.deadline.empty() && texts.warn_after.empty()) return {};
  return fail(Errc::invalid_argument, "with --server the limits are that server's: give them to uffda serve");
}

Result<ExecCommand> exec_command(const Texts& texts, const std::optional<std::vector<std::string>>& program) {
  constexpr std::string_view kHow = "write the program after --, as in: uffda exec --map PATH=URI -- PROGRAM";
  ExecCommand command;
  command.server = texts.server;
  command.preload = !texts.no_preload;
  command.report = texts.report;
  if (!texts.stray.empty())
    return fail(Errc::invalid_argument, fmt::format("'{}' is not expected here; {}", texts.stray.front(), kHow));
  if (texts.maps.empty()) return fail(Errc::invalid_argument, "nothing to show: give --map PATH=URI at least once");
  if (!program || program->empty()) return fail(Errc::invalid_argument, fmt::format("no program; {}", kHow));
  const bool is_uri = texts.server.empty();
  for (const std::string& text : texts.maps) {
    command.maps.push_back(UFFDA_TRY(parse_assignment("--map", text, is_uri ? "PATH=URI" : "PATH=EXPORT", is_uri)));
  }
  if (texts.on_error != "poison" && texts.on_error != "kill") {
    return fail(Errc::invalid_argument, fmt::format("--on-error {}: write poison or kill", texts.on_error));
  }
  command.kill_on_error = texts.on_error == "kill";
  UFFDA_TRY_VOID(check_server(texts));
  command.limits = UFFDA_TRY(limits_of(texts));
  command.modules = {.files = texts.modules, .isolate = texts.isolate};
  command.fill = UFFDA_TRY(fill_of(texts));
  command.program = *program;
  return command;
}

Result<std::map<std::string, ByteCount>> export_budgets(const Texts& texts, std::span<const Assignment> exports) {
  std::map<std::string, ByteCount> budgets;
  for (const std::string& text : texts.export_budgets) {
    const Assignment one = UFFDA_TRY(split_assignment("--export-budget", text, "NAME=SIZE"));
    if (std::ranges::find(exports, one.name, &Assignment::name) == exports.end())
      return fail(Errc::invalid_argument, fmt::format("--export-budget {}: there is no --export {}", text, one.name));
    const auto size = UFFDA_TRY(optional_value<ByteCount>("--export-budget", one.source, parse_size));
    if (!size || size->value == 0)
      return fail(Errc::invalid_argument, fmt::format("--export-budget {}: must be more than 0", text));
    budgets[one.name] = *size;
  }
  return budgets;
}

/// The last word on an export counts.
Result<std::set<std::string>> killing_exports(const Texts& texts, std::span<const Assignment> exports) {
  std::set<std::string> killing;
  for (const std::string& text : texts.on_errors) {
    const std::size_t equals = text.find('=');
    const std::string name = text.substr(0, equals == std::string::npos ? 0 : equals);
    const std::string what = equals == std::string::npos ? text : text.substr(equals + 1);
    if (what != "poison" && what != "kill")
      return fail(Errc::invalid_argument, fmt::format("--on-error {}: write poison or kill", text));
    bool known = false;
    for (const Assignment& one : exports) {
      if (equals != std::string::npos && one.name != name) continue;
      known = true;
      if (what == "kill") killing.insert(one.name);
      if (what == "poison") killing.erase(one.name);
    }
    if (!known) return fail(Errc::invalid_argument, fmt::format("--on-error {}: there is no --export {}", text, name));
  }
  return killing;
}

/// The service manager knows who may connect, and where.
Result<void> take_activated(const Texts& texts, ServeCommand& command) {
  command.activated = true;
  command.hugepages = texts.hugepages;
  if (texts.socket.empty() && texts.control.empty() && !texts.takeover && texts.protocol == "handoff") return {};
  return fail(Errc::invalid_argument,
              "with --activated the socket units say where and what: leave --socket, --protocol, --control and "
              "--takeover out");
}

/// Who may connect, and where.
Result<void> take_protocol(const Texts& texts, ServeCommand& command) {
  if (texts.activated) return take_activated(texts, command);
  if (texts.socket.empty()) return fail(Errc::invalid_argument, "nowhere to listen: give --socket PATH");
  if (texts.protocol == "handoff") {
    command.socket = texts.socket;
    if (texts.control.empty() && !texts.hugepages) return {};
    return fail(Errc::invalid_argument, "--control and --hugepages are for --protocol firecracker");
  }
  if (texts.protocol != "firecracker")
    return fail(Errc::invalid_argument, fmt::format("--protocol {}: write handoff or firecracker", texts.protocol));
  command.firecracker = texts.socket;
  command.socket = texts.control;
  command.hugepages = texts.hugepages;
  if (texts.exports.size() > 1) {
    return fail(Errc::invalid_argument,
                "with --protocol firecracker a server has one --export, for a VM cannot say which it wants: start one "
                "for each snapshot");
  }
  if (texts.takeover && texts.control.empty())
    return fail(Errc::invalid_argument, "--takeover asks the running server at its --control PATH: give that");
  return {};
}

Result<ServeCommand> serve_command(const Texts& texts) {
  ServeCommand command;
  command.until_idle = texts.until_idle;
  command.takeover = texts.takeover;
  command.holder = texts.holder || texts.takeover;
  command.report = texts.report;
  if (texts.exports.empty())
    return fail(Errc::invalid_argument, "nothing to serve: give --export NAME=URI at least once");
  UFFDA_TRY_VOID(take_protocol(texts, command));
  for (const std::string& text : texts.exports) {
    command.exports.push_back(UFFDA_TRY(parse_assignment("--export", text, "NAME=URI", true)));
    if (command.exports.back().mode == MapMode::cow)
      return fail(Errc::invalid_argument, fmt::format("--export {}: cow is for whoever maps it", text));
    if (command.exports.back().mode != MapMode::read_only && !command.firecracker.empty())
      return fail(Errc::invalid_argument, fmt::format("--export {}: what VMs write stays theirs", text));
  }
  for (auto one = command.exports.begin(); one != command.exports.end(); ++one) {
    const bool twice =
        std::any_of(command.exports.begin(), one, [&](const Assignment& other) { return other.name == one->name; });
    if (twice) return fail(Errc::invalid_argument, fmt::format("--export {}: the name is used twice", one->name));
  }
  command.export_budgets = UFFDA_TRY(export_budgets(texts, command.exports));
  command.killing = UFFDA_TRY(killing_exports(texts, command.exports));
  if (!texts.ready_fd.empty()) command.ready_fd = UFFDA_TRY(number<int>("--ready-fd", texts.ready_fd));
  for (const std::string& text : texts.allow_uids)
    command.allow_uids.push_back(UFFDA_TRY(number<uid_t>("--allow-uid", text)));
  command.limits = UFFDA_TRY(limits_of(texts));
  command.modules = {.files = texts.modules, .isolate = texts.isolate};
  command.fill = UFFDA_TRY(fill_of(texts));
  return command;
}

Result<MountCommand> mount_command(const Texts& texts) {
  MountCommand command{.map = {}, .server = texts.server, .report = texts.report, .limits = {}};
  const bool is_uri = texts.server.empty();
  if (texts.map.empty())
    return fail(Errc::invalid_argument, fmt::format("nothing to show: give {}", is_uri ? "PATH=URI" : "PATH=EXPORT"));
  UFFDA_TRY_VOID(check_server(texts));
  if (!is_uri && !texts.report.empty())
    return fail(Errc::invalid_argument, "with --server the report is that server's: give it to uffda serve");
  command.map = UFFDA_TRY(parse_assignment("PATH=URI", texts.map, is_uri ? "PATH=URI" : "PATH=EXPORT", is_uri));
  if (command.map.mode == MapMode::cow)
    return fail(Errc::invalid_argument, "cow is for programs that are run by uffda exec");
  command.limits = UFFDA_TRY(limits_of(texts));
  command.modules = {.files = texts.modules, .isolate = texts.isolate};
  command.fill = UFFDA_TRY(fill_of(texts));
  return command;
}

/// The arguments with which a source is opened, by the source's name.
Result<std::pair<std::string, std::string>> module_arguments(const std::string& text) {
  const SourceUri uri = UFFDA_TRY(SourceUri::parse(text));
  if (uri.scheme() != "mod" || !uri.layers().empty())
    return fail(Errc::invalid_argument, fmt::format("'{}' is not expected here; write mod:NAME?KEY=VALUE", text));
  const std::size_t query = text.find('?');
  return std::pair(uri.rest(), query == std::string::npos ? "" : text.substr(query + 1));
}

Result<Command> module_command(const Texts& texts) {
  const std::vector<std::string>& words = texts.module_words;
  if (words.size() == 2 && words.front() == "host") return ModuleHostCommand{words[1]};
  if (words.size() < 2 || words.front() != "check")
    return fail(Errc::invalid_argument, "write: uffda module check FILE");
  ModuleCheckCommand command{.file = words[1], .arguments = {}, .deadline = {}};
  for (std::size_t i = 2; i < words.size(); ++i) command.arguments.insert(UFFDA_TRY(module_arguments(words[i])));
  command.deadline = UFFDA_TRY(limits_of(texts)).deadline;
  command.isolate = texts.isolate;
  return command;
}

Result<CriuCommand> criu_command(const Texts& texts) {
  CriuCommand command = UFFDA_TRY(criu_command(texts.criu));
  const auto deadline = UFFDA_TRY(limits_of(texts)).deadline;
  const int ready_fd = texts.ready_fd.empty() ? -1 : UFFDA_TRY(number<int>("--ready-fd", texts.ready_fd));
  std::visit(
      [&](auto& options) {
        options.ready_fd = ready_fd;
        options.deadline = deadline.value_or(options.deadline);
      },
      command.options);
  if (const auto* lazy = std::get_if<LazyPagesOptions>(&command.options); lazy != nullptr && !lazy->pages.empty())
    UFFDA_TRY_VOID(check_source(lazy->pages));
  return command;
}

Result<PutCommand> put_command(const Texts& texts) {
  if (texts.put_words.size() != 2)
    return fail(Errc::invalid_argument, "write: uffda put INPUT URI, such as: uffda put disk.img rados:images/disk");
  PutCommand command{.input = texts.put_words[0], .uri = texts.put_words[1], .replace = texts.replace};
  UFFDA_TRY_VOID(check_source(command.uri));
  command.deadline = UFFDA_TRY(limits_of(texts)).deadline.value_or(command.deadline);
  return command;
}

template <typename T>
Command as_command(const std::string& name, Result<T> parsed) {
  if (!parsed) return usage(name, parsed.error().context());
  return *std::move(parsed);
}

Command help_command(const CLI::App& root, const std::string& topic) {
  if (topic.empty()) return HelpText{root.help()};
  try {
    return HelpText{root.get_subcommand(topic)->help()};
  } catch (const CLI::OptionNotFound&) {
    return UsageError{fmt::format("uffda help: there is no command '{}'\nuffda help lists the commands", topic)};
  }
}

Command chosen_command(const CLI::App& root, const Texts& texts,
                       const std::optional<std::vector<std::string>>& program) {
  const std::string name = root.get_subcommands().front()->get_name();
  if (program && name != "exec") return usage(name, "'--' and a program are for exec only");
  if (name == "exec") return as_command(name, exec_command(texts, program));
  if (name == "serve") return as_command(name, serve_command(texts));
  if (name == "mount") return as_command(name, mount_command(texts));
  if (name == "put") return as_command(name, put_command(texts));
  if (name == "qemu" && is_save(texts.qemu)) return as_command(name, qemu_save_command(texts.qemu));
  if (name == "qemu") return as_command(name, qemu_restore_command(texts.qemu));
  if (name == "module") return as_command(name, module_command(texts));
  if (name == "criu") return as_command(name, criu_command(texts));
  if (name == "pack" && is_attach(texts.pack)) return as_command(name, attach_command(texts.pack));
  if (name == "pack") return as_command(name, pack_command(texts.pack));
  if (name == "unpack") return as_command(name, unpack_command(texts.pack));
  if (name == "inspect") return as_command(name, inspect_command(texts.pack));
  if (name == "verify") return as_command(name, verify_command(texts.pack));
  if (name == "attach") return as_command(name, attach_process_command(texts.operate, limits_of(texts)));
  if (name == "stats") return as_command(name, stats_command(texts.operate));
  if (name == "probe") return ProbeCommand{texts.json};
  if (name == "version") return VersionCommand{texts.json};
  return help_command(root, texts.topic);
}

/// CLI11 says what is wrong in its own words; the first word of the command line says whose help to point to.
Command parse_failure(const CLI::App& root, const CLI::ParseError& error, const std::vector<std::string>& words) {
  const auto commands = root.get_subcommands(nullptr);
  const auto is_command = [&](const CLI::App* command) {
    return !words.empty() && command->get_name() == words.front();
  };
  if (std::ranges::any_of(commands, is_command)) return usage(words.front(), error.what());
  std::vector<std::string> names;
  names.reserve(commands.size());
  for (const CLI::App* command : commands) names.push_back(command->get_name());
  if (words.empty() || words.front().starts_with("-")) {
    return UsageError{fmt::format("uffda: give a command: {}\nuffda help says what they do", fmt::join(names, ", "))};
  }
  return UsageError{
      fmt::format("uffda: there is no command '{}'; there are {}", words.front(), fmt::join(names, ", "))};
}

}  // namespace

Command parse_command_line(const std::vector<std::string>& arguments) {
  const auto dashes = std::ranges::find(arguments, "--");
  const std::vector<std::string> words(arguments.begin(), dashes);
  std::optional<std::vector<std::string>> program;
  if (dashes != arguments.end()) program.emplace(dashes + 1, arguments.end());

  Texts texts;
  CLI::App root("uffda: any byte source as memory, fault by fault");
  set_help(root, {.usage = "uffda COMMAND [options]",
                  .example = "uffda exec --map /data/big.db=file:big.db -- sqlite3 /data/big.db .tables",
                  .sources = false});
  add_exec(root, texts);
  add_serve(root, texts);
  add_mount(root, texts);
  add_module(root, texts);
  add_pack_commands(root, texts.pack);
  add_put(root, texts);
  add_criu(root, texts);
  add_qemu_command(root, texts.qemu);
  add_operate_commands(root, texts.operate);
  add_limits(*root.get_subcommand("attach"), texts);
  add_small_ones(root, texts);
  bool version = false;
  root.add_flag("--version", version, "the same as uffda version");
  root.require_subcommand(0, 1);
  try {
    root.parse(std::vector<std::string>(words.rbegin(), words.rend()));  // CLI11 takes them last first
  } catch (const CLI::CallForHelp&) {
    const auto parsed = root.get_subcommands();
    return HelpText{parsed.empty() ? root.help() : parsed.front()->help()};
  } catch (const CLI::ParseError& error) {
    return parse_failure(root, error, words);
  }
  if (version) return VersionCommand{};
  if (root.get_subcommands().empty()) return UsageError{root.help()};
  return chosen_command(root, texts, program);
}

}  // namespace uffda::cli
