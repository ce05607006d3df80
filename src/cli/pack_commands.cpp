#include "cli/pack_commands.h"

#include <fmt/format.h>

#include <charconv>

#include "cli/help.h"
#include "criu/dump_source.h"
#include "uffda/source_registry.h"

namespace uffda::cli {
namespace {

CLI::App& add(CLI::App& root, PackTexts& texts, const char* name, const char* description) {
  CLI::App& app = *root.add_subcommand(name, description);
  app.add_option("words", texts.words)->group("");
  return app;
}

Result<void> expect_words(const PackTexts& texts, std::size_t count, std::string_view how) {
  if (texts.words.size() == count) return {};
  return fail(Errc::invalid_argument, fmt::format("write: uffda {}", how));
}

}  // namespace

void add_pack_commands(CLI::App& root, PackTexts& texts) {
  CLI::App& pack = add(root, texts, "pack", "Makes a compressed snapshot that is mapped without unpacking it");
  pack.add_option("--frame", texts.frame, "what is compressed as one: 4K to 1M (default: 64K)")->type_name("SIZE");
  pack.add_option("--level", texts.level, "of zstd: 1 to 19 (default: 3)")->type_name("N");
  pack.add_option("--base", texts.base, "store only what is not in this pack")->type_name("PACK");
  pack.add_option(
          "--working-set", texts.working_set,
          "keep this recording of --record in the pack: it is prefetched from then on. Without INPUT: put it into "
          "a pack that is there")
      ->type_name("FILE");
  pack.add_option("--criu", texts.criu, "in place of INPUT: the memory of this dump of CRIU")->type_name("DIR");
  pack.add_option("--metadata", texts.metadata, "keep this in the pack; may be repeated")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  set_help(pack, {.usage = "uffda pack INPUT OUT.pack [options]\n       uffda pack --working-set FILE PACK\n"
                           "       uffda pack --criu DIR OUT.pack [options]",
                  .example = "uffda pack disk.img disk.pack --metadata host=db1",
                  .sources = false});
  CLI::App& unpack = add(root, texts, "unpack", "Writes the contents of a pack to a file, with holes for zeroes");
  set_help(unpack, {.usage = "uffda unpack PACK OUT", .example = "uffda unpack disk.pack disk.img", .sources = false});
  CLI::App& inspect = add(root, texts, "inspect", "Shows what a pack is made of");
  inspect.add_flag("--json", texts.json, "for programs");
  inspect.add_flag("--map", texts.map, "a picture of what lies where in the contents");
  set_help(inspect,
           {.usage = "uffda inspect PACK [--json] [--map]", .example = "uffda inspect disk.pack", .sources = false});
  CLI::App& verify = add(root, texts, "verify", "Reads all of a pack and of the packs it builds on, and checks it");
  set_help(verify, {.usage = "uffda verify PACK", .example = "uffda verify disk.pack", .sources = false});
}

Result<PackCommand> pack_command(const PackTexts& texts) {
  const bool dump = !texts.criu.empty();
  UFFDA_TRY_VOID(dump ? expect_words(texts, 1, "pack --criu DIR OUT.pack [options]")
                      : expect_words(texts, 2, "pack INPUT OUT.pack [options]"));
  PackCommand command{.input = dump ? criu::source_uri(texts.criu) : texts.words.front(),
                      .output = texts.words.back(),
                      .frame = {},
                      .base = texts.base,
                      .working_set = texts.working_set,
                      .metadata = {}};
  if (!texts.frame.empty()) {
    auto size = parse_size(texts.frame);
    if (!size) return std::unexpected(size.error().within("--frame"));
    command.frame = *size;
  }
  const char* const end = texts.level.data() + texts.level.size();
  if (const auto [last, error] = std::from_chars(texts.level.data(), end, command.level);
      error != std::errc{} || last != end) {
    return fail(Errc::invalid_argument, fmt::format("--level {}: a number is needed", texts.level));
  }
  for (const std::string& text : texts.metadata) {
    const std::size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0)
      return fail(Errc::invalid_argument, fmt::format("--metadata {}: write it as KEY=VALUE", text));
    command.metadata.emplace_back(text.substr(0, equals), text.substr(equals + 1));
  }
  return command;
}

bool is_attach(const PackTexts& texts) {
  return texts.words.size() == 1 && !texts.working_set.empty() && texts.criu.empty();
}

Result<AttachCommand> attach_command(const PackTexts& texts) {
  if (!texts.frame.empty() || texts.level != PackTexts{}.level || !texts.base.empty() || !texts.metadata.empty()) {
    return fail(Errc::invalid_argument,
                "--working-set into a pack that is there changes nothing else: leave the other options out, or name an "
                "INPUT to make a pack of");
  }
  return AttachCommand{.pack = texts.words[0], .working_set = texts.working_set};
}

Result<UnpackCommand> unpack_command(const PackTexts& texts) {
  UFFDA_TRY_VOID(expect_words(texts, 2, "unpack PACK OUT"));
  return UnpackCommand{.pack = texts.words[0], .output = texts.words[1]};
}

Result<InspectCommand> inspect_command(const PackTexts& texts) {
  UFFDA_TRY_VOID(expect_words(texts, 1, "inspect PACK [--json] [--map]"));
  return InspectCommand{.pack = texts.words[0], .json = texts.json, .map = texts.map};
}

Result<VerifyCommand> verify_command(const PackTexts& texts) {
  UFFDA_TRY_VOID(expect_words(texts, 1, "verify PACK"));
  return VerifyCommand{.pack = texts.words[0]};
}

}  // namespace uffda::cli
