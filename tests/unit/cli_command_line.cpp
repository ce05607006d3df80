// The command line, taken apart.
#include "cli/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

#include "cli/run.h"

namespace uffda::cli {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::ElementsAre;
using testing::HasSubstr;
using Words = std::vector<std::string>;

template <typename T>
T parse_as(const Words& words) {
  Command command = parse_command_line(words);
  if (const auto* error = std::get_if<UsageError>(&command)) ADD_FAILURE() << error->text;
  const auto* wanted = std::get_if<T>(&command);
  EXPECT_NE(wanted, nullptr);
  return wanted != nullptr ? *wanted : T{};
}

std::string usage_error(const Words& words) {
  Command command = parse_command_line(words);
  const auto* error = std::get_if<UsageError>(&command);
  EXPECT_NE(error, nullptr) << "was accepted";
  return error != nullptr ? error->text : "";
}

std::string help(const Words& words) { return parse_as<HelpText>(words).text; }

TEST(CliExec, TakesMapsAndTheProgramWordForWord) {
  const auto command = parse_as<ExecCommand>(
      {"exec", "--map", "/a=zero:1M", "--map", "b.img=zero:2M", "--", "prog", "--map", "-h", "--", "x"});
  ASSERT_EQ(command.maps.size(), 2U);
  EXPECT_EQ(command.maps[0].name, "/a");
  EXPECT_EQ(command.maps[0].source, "zero:1M");
  EXPECT_EQ(command.maps[1].name, "b.img");
  EXPECT_THAT(command.program, ElementsAre("prog", "--map", "-h", "--", "x"));
  EXPECT_TRUE(command.preload);
  EXPECT_FALSE(command.kill_on_error);
}

TEST(CliExec, SplitsAtTheFirstEqualsSign) {
  const auto command = parse_as<ExecCommand>({"exec", "--map=/a=file:/tmp/x?direct=1", "--", "true"});
  EXPECT_EQ(command.maps[0].name, "/a");
  EXPECT_EQ(command.maps[0].source, "file:/tmp/x?direct=1");
}

TEST(CliExec, TakesOptions) {
  const auto command =
      parse_as<ExecCommand>({"exec", "--map", "/a=zero:1M", "--on-error=kill", "--report", "r.json", "--no-preload",
                             "--budget", "512M", "--deadline", "5s", "--warn-after=250ms", "--", "true"});
  EXPECT_TRUE(command.kill_on_error);
  EXPECT_FALSE(command.preload);
  EXPECT_EQ(command.report, "r.json");
  EXPECT_EQ(command.limits.budget, 512_MiB);
  EXPECT_EQ(command.limits.deadline, Duration(seconds(5)));
  EXPECT_EQ(command.limits.warn_after, Duration(milliseconds(250)));
}

TEST(CliFill, WhatIsRecordedAndFetchedAheadIsPassedToTheServer) {
  const auto command = parse_as<ExecCommand>({"exec", "--map", "/a=zero:1M", "--record", "out.ws", "--prefetch=in.ws",
                                              "--populate", "--populate-rate", "10M", "--", "true"});
  EXPECT_EQ(command.fill.record, "out.ws");
  EXPECT_EQ(server_arguments({}, {}, command.fill),
            (Words{"--record", "out.ws", "--prefetch", "in.ws", "--populate", "--populate-rate", "10485760"}));
  EXPECT_TRUE(parse_as<MountCommand>({"mount", "--populate", "/a=zero:1M"}).fill.populate);
  EXPECT_THAT(usage_error({"exec", "--server", "/s", "--record", "r", "--map", "/a=b", "--", "true"}),
              HasSubstr("uffda serve"));
  EXPECT_THAT(usage_error({"serve", "--export", "a=zero:1M", "--socket", "/s", "--populate-rate", "1M"}),
              HasSubstr("--populate"));
}

TEST(CliModule, FilesAreLoadedInOrderAndPassedToTheServer) {
  const auto command =
      parse_as<ExecCommand>({"exec", "--module", "./a.so", "--module", "b.so", "--map", "/a=zero:1M", "--", "true"});
  EXPECT_EQ(command.modules.files, (Words{"./a.so", "b.so"}));
  EXPECT_EQ(server_arguments({}, command.modules), (Words{"--module", "./a.so", "--module", "b.so"}));
  EXPECT_EQ(server_arguments({}, {.files = {"a.so"}, .isolate = true}), (Words{"--module", "a.so", "--isolate"}));
  EXPECT_TRUE(
      parse_as<ServeCommand>({"serve", "--isolate", "--export", "a=zero:1M", "--socket", "/s"}).modules.isolate);
  EXPECT_THAT(usage_error({"exec", "--server", "/s", "--module", "a.so", "--map", "/a=b", "--", "true"}),
              HasSubstr("uffda serve"));
}

TEST(CliModule, CheckTakesAFileAndArgumentsForItsSources) {
  const auto command = parse_as<ModuleCheckCommand>({"module", "check", "./a.so", "mod:x?size=1M&seed=2", "mod:y"});
  EXPECT_EQ(command.file, "./a.so");
  EXPECT_EQ(command.arguments, (std::map<std::string, std::string>{{"x", "size=1M&seed=2"}, {"y", ""}}));
  EXPECT_THAT(usage_error({"module"}), HasSubstr("uffda module check FILE"));
  EXPECT_THAT(usage_error({"module", "check"}), HasSubstr("uffda module check FILE"));
  EXPECT_THAT(usage_error({"module", "test", "a.so"}), HasSubstr("uffda module check FILE"));
  EXPECT_THAT(usage_error({"module", "check", "a.so", "file:b"}), HasSubstr("mod:NAME"));
}

TEST(CliQemu, SavesToAPackAndRestoresFromAnyUri) {
  const auto save = parse_as<QemuSaveCommand>({"qemu", "save", "--qmp", "q", "m.pack", "--stay-stopped"}).options;
  EXPECT_EQ(save.output, "m.pack");
  EXPECT_EQ(save.afterwards, qemu::Afterwards::stay_stopped);
  const auto pack = parse_as<QemuRestoreCommand>({"qemu", "restore", "--qmp", "q", "m.pack", "--deadline", "2s"});
  EXPECT_EQ(pack.options.machine.image, "pack:m.pack");
  EXPECT_EQ(pack.options.core.deadline, Duration(seconds(2)));
  EXPECT_EQ(parse_as<QemuRestoreCommand>({"qemu", "restore", "--qmp", "q", "file:m"}).options.machine.image, "file:m");
  const auto parts = parse_as<QemuRestoreCommand>({"qemu", "restore", "--qmp", "q", "--state", "s", "--ram", "ram"});
  EXPECT_EQ(parts.options.machine.state, "s");
  EXPECT_EQ(parts.options.machine.ram, "file:ram");
  EXPECT_THAT(usage_error({"qemu"}), HasSubstr("uffda qemu save"));
  EXPECT_THAT(usage_error({"qemu", "save", "m.pack"}), HasSubstr("--qmp SOCKET"));
  EXPECT_THAT(usage_error({"qemu", "restore", "--qmp", "q", "--ram", "zero:1M"}), HasSubstr("give both"));
  EXPECT_THAT(usage_error({"qemu", "save", "--qmp", "q", "m", "--record", "r"}), HasSubstr("--record is not for"));
}

TEST(CliExec, WithAServerMapsNameExports) {
  const auto command = parse_as<ExecCommand>({"exec", "--server", "/run/s", "--map", "/a=disk", "--", "true"});
  EXPECT_EQ(command.server, "/run/s");
  EXPECT_EQ(command.maps[0].source, "disk");
  EXPECT_THAT(usage_error({"exec", "--server", "/run/s", "--map", "/a=disk", "--deadline", "1s", "--", "true"}),
              HasSubstr("uffda serve"));
}

TEST(CliExec, SaysWhatIsMissing) {
  EXPECT_THAT(usage_error({"exec", "--map", "/a=zero:1M"}), HasSubstr("after --"));
  EXPECT_THAT(usage_error({"exec", "--map", "/a=zero:1M", "--"}), HasSubstr("no program"));
  EXPECT_THAT(usage_error({"exec", "--map", "/a=zero:1M", "sqlite3", "/a"}),
              HasSubstr("'sqlite3' is not expected here"));
  EXPECT_THAT(usage_error({"exec", "--", "true"}), HasSubstr("--map PATH=URI"));
}

TEST(CliExec, SaysWhatIsWrongWithAMap) {
  EXPECT_THAT(usage_error({"exec", "--map", "zero:1M", "--", "true"}), HasSubstr("write it as PATH=URI"));
  EXPECT_THAT(usage_error({"exec", "--map", "=zero:1M", "--", "true"}), HasSubstr("write it as PATH=URI"));
  EXPECT_THAT(usage_error({"exec", "--map", "/a=", "--", "true"}), HasSubstr("write it as PATH=URI"));
  EXPECT_THAT(usage_error({"exec", "--server", "/s", "--map", "/a=,rw", "--", "true"}), HasSubstr("write it as PATH="));
  const std::string unknown = usage_error({"exec", "--map", "/a=ftp:x", "--", "true"});
  EXPECT_THAT(unknown, HasSubstr("'ftp'"));
  EXPECT_THAT(unknown, HasSubstr("zero"));
}

TEST(CliServe, AnExportMayHaveABudgetOfItsOwn) {
  const auto serve = [](const std::string& budget) {
    return Words{"serve",    "--export", "a=zero:1M",       "--export", "b=zero:2M",
                 "--socket", "/s",       "--export-budget", budget};
  };
  const auto command = parse_as<ServeCommand>(serve("b=64M"));
  EXPECT_EQ(command.export_budgets, (std::map<std::string, ByteCount>{{"b", 64_MiB}}));
  EXPECT_THAT(usage_error(serve("c=64M")), HasSubstr("there is no --export c"));
  EXPECT_THAT(usage_error(serve("b=0")), HasSubstr("more than 0"));
  EXPECT_THAT(usage_error(serve("b")), HasSubstr("NAME=SIZE"));
}

TEST(CliExec, SaysWhatIsWrongWithAValue) {
  const Words start{"exec", "--map", "/a=zero:1M"};
  const auto with = [&](const std::string& option, const std::string& value) {
    Words words = start;
    words.insert(words.end(), {option, value, "--", "true"});
    return usage_error(words);
  };
  EXPECT_THAT(with("--budget", "12X"), HasSubstr("--budget"));
  EXPECT_THAT(with("--budget", "0"), HasSubstr("more than 0"));
  EXPECT_THAT(with("--deadline", "5"), HasSubstr("--deadline"));
  EXPECT_THAT(with("--deadline", "0s"), HasSubstr("more than 0"));
  EXPECT_THAT(with("--on-error", "stop"), HasSubstr("poison or kill"));
}

TEST(CliServe, TakesOptions) {
  const auto command =
      parse_as<ServeCommand>({"serve", "--export", "a=zero:1M", "--export", "b=zero:2M", "--socket", "/s", "--ready-fd",
                              "5", "--until-idle", "--allow-uid", "7", "--allow-uid=8", "--report", "r"});
  ASSERT_EQ(command.exports.size(), 2U);
  EXPECT_EQ(command.exports[1].name, "b");
  EXPECT_EQ(command.socket, "/s");
  EXPECT_EQ(command.ready_fd, 5);
  EXPECT_TRUE(command.until_idle);
  EXPECT_THAT(command.allow_uids, ElementsAre(7U, 8U));
  EXPECT_EQ(command.report, "r");
  EXPECT_FALSE(command.limits.budget.has_value());
}

TEST(CliServe, SpeaksToFirecrackerAtItsSocket) {
  const auto serve = [](const Words& more) {
    Words words{"serve", "--protocol", "firecracker", "--export", "vm=zero:1M", "--socket", "/s"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  const auto command = parse_as<ServeCommand>(serve({"--control", "/c", "--hugepages"}));
  EXPECT_EQ(command.firecracker, "/s");
  EXPECT_EQ(command.socket, "/c");
  EXPECT_TRUE(command.hugepages);
  EXPECT_EQ(parse_as<ServeCommand>(serve({})).socket, "");
  EXPECT_THAT(usage_error(serve({"--export", "b=zero:1M"})), HasSubstr("one for each snapshot"));
  EXPECT_THAT(usage_error(serve({"--takeover"})), HasSubstr("--control PATH"));
  EXPECT_THAT(usage_error({"serve", "--protocol", "firecracker", "--export", "vm=zero:1M,rw", "--socket", "/s"}),
              HasSubstr("stays theirs"));
  EXPECT_THAT(usage_error({"serve", "--protocol", "criu", "--export", "a=zero:1M", "--socket", "/s"}),
              HasSubstr("handoff or firecracker"));
  EXPECT_THAT(usage_error({"serve", "--control", "/c", "--export", "a=zero:1M", "--socket", "/s"}),
              HasSubstr("--protocol firecracker"));
}

TEST(CliServe, SaysWhatIsMissingOrWrong) {
  EXPECT_THAT(usage_error({"serve", "--socket", "/s"}), HasSubstr("--export NAME=URI"));
  EXPECT_THAT(usage_error({"serve", "--export", "a=zero:1M"}), HasSubstr("--socket PATH"));
  EXPECT_THAT(usage_error({"serve", "--export", "a=zero:1M", "--export", "a=zero:1M", "--socket", "/s"}),
              HasSubstr("twice"));
  EXPECT_THAT(usage_error({"serve", "--export", "a=zero:1M", "--socket", "/s", "--ready-fd", "x"}),
              HasSubstr("a number"));
  EXPECT_THAT(usage_error({"serve", "--export", "a=zero:1M", "--socket", "/s", "--allow-uid", "-1"}),
              HasSubstr("--allow-uid"));
  EXPECT_THAT(usage_error({"serve", "--export", "a=zero:1M", "--socket", "/s", "--", "true"}), HasSubstr("exec only"));
}

TEST(CliMount, TakesOneMap) {
  const auto command = parse_as<MountCommand>({"mount", "/m=zero:1M", "--report", "r"});
  EXPECT_EQ(command.map.name, "/m");
  EXPECT_EQ(command.map.source, "zero:1M");
  EXPECT_THAT(usage_error({"mount"}), HasSubstr("PATH=URI"));
  EXPECT_THAT(usage_error({"mount", "--server", "/s", "/m=disk", "--report", "r"}), HasSubstr("uffda serve"));
}

TEST(CliSmall, ProbeAndVersionTakeJson) {
  EXPECT_FALSE(parse_as<ProbeCommand>({"probe"}).json);
  EXPECT_TRUE(parse_as<ProbeCommand>({"probe", "--json"}).json);
  EXPECT_TRUE(parse_as<VersionCommand>({"version", "--json"}).json);
  EXPECT_FALSE(parse_as<VersionCommand>({"--version"}).json);
}

TEST(CliSmall, UnknownWordsAreNamed) {
  const std::string unknown = usage_error({"exce"});
  EXPECT_THAT(unknown, HasSubstr("'exce'"));
  EXPECT_THAT(unknown, HasSubstr("exec, serve"));
  EXPECT_THAT(usage_error({"probe", "--yaml"}), HasSubstr("--yaml"));
  EXPECT_THAT(usage_error({"--yaml"}), HasSubstr("give a command"));
  EXPECT_THAT(usage_error({}), HasSubstr("Commands"));
  EXPECT_THAT(usage_error({"help", "exce"}), HasSubstr("'exce'"));
}

TEST(CliHelp, EveryCommandHasUsageAndExample) {
  for (const std::string command : {"exec", "serve", "attach", "stats", "mount", "probe", "version", "help"}) {
    const std::string text = help({"help", command});
    EXPECT_THAT(text, HasSubstr("uffda " + command)) << command;
    EXPECT_THAT(text, HasSubstr("\nExample\n  uffda " + command)) << command;
    EXPECT_EQ(text, help({command, "--help"})) << command;
  }
}

TEST(CliHelp, ListsTheRegisteredSources) {
  const std::string text = help({"exec", "-h"});
  EXPECT_THAT(text, HasSubstr("file:PATH"));
  EXPECT_THAT(text, HasSubstr("zero:"));
}

TEST(CliHelp, OfTheProgramIsTheProgramsOwn) {
  EXPECT_THAT(parse_as<ExecCommand>({"exec", "--map", "/a=zero:1M", "--", "ls", "--help"}).program,
              ElementsAre("ls", "--help"));
}

TEST(CliPack, KeepsARecordingInANewPackOrInOneThatIsThere) {
  const auto made = parse_as<PackCommand>({"pack", "in", "out.pack", "--working-set", "ws", "--level", "5"});
  EXPECT_EQ(made.working_set, "ws");
  EXPECT_EQ(made.output, "out.pack");
  const auto attached = parse_as<AttachCommand>({"pack", "--working-set", "ws", "out.pack"});
  EXPECT_EQ(attached.pack, "out.pack");
  EXPECT_EQ(attached.working_set, "ws");
  EXPECT_THAT(usage_error({"pack", "out.pack"}), HasSubstr("uffda pack INPUT OUT.pack"));
  for (const Words& more :
       {Words{"--level", "5"}, Words{"--frame", "4K"}, Words{"--base", "b"}, Words{"--metadata", "a=b"}}) {
    Words words{"pack", "--working-set", "ws", "out.pack"};
    words.insert(words.end(), more.begin(), more.end());
    EXPECT_THAT(usage_error(words), HasSubstr("leave the other options out")) << more.front();
  }
}

TEST(CliFill, TravelsToAServerUnchanged) {
  const Fill fill{.record = "r", .prefetch = {}, .no_prefetch = true, .populate = true, .rate = ByteCount{77}};
  Words words{"serve", "--export", "a=zero:1M", "--socket", "/s"};
  for (const std::string& word : server_arguments({}, {}, fill)) words.push_back(word);
  const Fill told = parse_as<ServeCommand>(words).fill;
  EXPECT_EQ(told.record, "r");
  EXPECT_TRUE(told.no_prefetch);
  EXPECT_TRUE(told.populate);
  EXPECT_EQ(told.rate, ByteCount{77});
  EXPECT_THAT(usage_error({"serve", "--export", "a=zero:1M", "--socket", "/s", "--prefetch", "f", "--no-prefetch"}),
              HasSubstr("give one of them"));
}

TEST(CliLimits, TravelToAServerUnchanged) {
  const Limits limits{
      .budget = ByteCount{12345}, .deadline = Duration(milliseconds(1500)), .warn_after = Duration(milliseconds(7))};
  Words words{"serve", "--export", "a=zero:1M", "--socket", "/s"};
  for (const std::string& word : server_arguments(limits, {})) words.push_back(word);
  const auto command = parse_as<ServeCommand>(words);
  EXPECT_EQ(command.limits.budget, limits.budget);
  EXPECT_EQ(command.limits.deadline, limits.deadline);
  EXPECT_EQ(command.limits.warn_after, limits.warn_after);
}

TEST(CommandLine, AttachSaysWhoseMemoryAndWhatItShows) {
  const auto command = parse_as<AttachProcessCommand>(
      {"attach", "--pid", "7", "--fd", "9", "--map", "1000-2000=zero:4K", "--on-error", "kill", "--deadline", "2s"});
  EXPECT_EQ(command.pid, 7);
  EXPECT_EQ(command.fd, 9);
  ASSERT_EQ(command.maps.size(), 1U);
  EXPECT_EQ(command.maps[0].uri, "zero:4K");
  EXPECT_TRUE(command.kill_on_error);
  EXPECT_EQ(command.limits.deadline, std::chrono::seconds(2));
  EXPECT_THAT(usage_error({"attach", "--pid", "7"}), HasSubstr("--fd FD"));
  EXPECT_THAT(usage_error({"attach", "--pid", "-7", "--fd", "1"}), HasSubstr("a number is needed"));
  EXPECT_THAT(usage_error({"attach", "--pid", "7", "--fd", "9", "--regions", "x"}), HasSubstr("--source URI"));
  EXPECT_THAT(usage_error({"attach", "--pid", "7", "--fd", "9", "--map", "x"}), HasSubstr("START-END=URI"));
  EXPECT_THAT(usage_error({"attach", "--pid", "7", "--fd", "9", "--map", "1000-2000=@2M"}), HasSubstr("START-END=URI"));
}

TEST(CommandLine, StatsAsksOneServer) {
  EXPECT_EQ(parse_as<StatsCommand>({"stats", "--socket", "s", "--json"}).socket, "s");
  EXPECT_THAT(usage_error({"stats"}), HasSubstr("--socket PATH"));
}

TEST(CommandLine, ServeTakesItsSocketsFromTheManagerOrMakesThem) {
  EXPECT_TRUE(parse_as<ServeCommand>({"serve", "--activated", "--export", "a=zero:4K"}).activated);
  EXPECT_THAT(usage_error({"serve", "--activated", "--socket", "s", "--export", "a=zero:4K"}),
              HasSubstr("leave --socket"));
}

TEST(CommandLine, TheLastWordOnAnExportCounts) {
  const auto command = parse_as<ServeCommand>({"serve", "--socket", "s", "--export", "a=zero:4K", "--export",
                                               "b=zero:4K", "--on-error", "kill", "--on-error", "a=poison"});
  EXPECT_EQ(command.killing, std::set<std::string>{"b"});
  EXPECT_THAT(usage_error({"serve", "--socket", "s", "--export", "a=zero:4K", "--on-error", "c=kill"}),
              HasSubstr("no --export c"));
}

}  // namespace
}  // namespace uffda::cli
