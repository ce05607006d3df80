// What inspect shows of a pack. Its base need not be there.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cstdio>

#include "cli/pack_commands.h"
#include "cli/table.h"
#include "sources/pack/open.h"
#include "sources/pack/writer.h"

namespace uffda::cli {
namespace {

using pack::FrameKind;

struct KindName {
  FrameKind kind;
  const char* name;
  const char* what;
  char mark;  ///< in the picture
};
constexpr std::array<KindName, 5> kKinds{{{FrameKind::zstd, "zstd", "compressed", '#'},
                                          {FrameKind::raw, "raw", "stored as they are", '@'},
                                          {FrameKind::duplicate, "duplicate", "duplicates of others", '='},
                                          {FrameKind::base, "base", "in the base", '-'},
                                          {FrameKind::zero, "zero", "zeroes", '.'}}};

/// Bytes stored for the compressed frames, smallest first.
std::vector<std::uint32_t> compressed_sizes(const pack::Index& index) {
  std::vector<std::uint32_t> sizes;
  for (std::uint64_t number = 0; number < index.frames(); ++number) {
    if (const pack::Frame frame = index.frame(number); frame.kind == FrameKind::zstd) sizes.push_back(frame.stored);
  }
  std::ranges::sort(sizes);
  return sizes;
}

std::uint32_t quantile(const std::vector<std::uint32_t>& sorted, double share) {
  if (sorted.empty()) return 0;
  return sorted[static_cast<std::size_t>(share * static_cast<double>(sorted.size() - 1))];
}

double percent(ByteCount part, ByteCount whole) {
  return whole.value == 0 ? 0 : 100.0 * static_cast<double>(part.value) / static_cast<double>(whole.value);
}

std::string as_json(const pack::Pack& one, const pack::Summary& summary) {
  const std::vector<std::uint32_t> sizes = compressed_sizes(one.index);
  nlohmann::ordered_json json{{"version", pack::kVersion},
                              {"size", summary.size.value},
                              {"file_size", summary.file_size.value},
                              {"frame_size", one.index.frame_size().value},
                              {"frames", one.index.frames()},
                              {"identity", one.index.identity().text()}};
  for (const KindName& kind : kKinds) {
    const pack::KindCount& count = summary.of(kind.kind);
    json["kinds"][kind.name] = {
        {"frames", count.frames}, {"contents", count.contents.value}, {"stored", count.stored.value}};
  }
  json["compressed_frame"] = {{"smallest", quantile(sizes, 0)},
                              {"median", quantile(sizes, 0.5)},
                              {"p90", quantile(sizes, 0.9)},
                              {"largest", quantile(sizes, 1)}};
  json["index"] = one.header.index.range.length.value;
  json["working_set"] = one.header.working_set.range.length.value;
  json["metadata"] = one.metadata;
  if (!one.base_name.empty()) json["base"] = {{"name", one.base_name}, {"identity", one.index.base().text()}};
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::string as_text(const pack::Pack& one, const pack::Summary& summary) {
  std::string text = fmt::format("{}\n\n", one.name);
  text += fmt::format("  contents  {}\n", size_text(summary.size));
  text += fmt::format("  file      {} ({:.1f} %)\n", size_text(summary.file_size),
                      percent(summary.file_size, summary.size));
  text += fmt::format("  frames    {} of {}\n", one.index.frames(), size_text(one.index.frame_size()));
  text += fmt::format("  identity  {}\n", one.index.identity().text());
  if (!one.base_name.empty())
    text += fmt::format("  base      {}, identity {}\n", one.base_name, one.index.base().text());
  if (const ByteCount working_set = one.header.working_set.range.length; working_set.value != 0)
    text += fmt::format("  working set {}\n", size_text(working_set));
  for (const auto& [key, value] : one.metadata) text += fmt::format("  {} = {}\n", key, value);
  Table table({"frames", "number", "contents", "share", "stored"});
  for (std::size_t column = 1; column < 5; ++column) table.align(column, Align::right);
  for (const KindName& kind : kKinds) {
    const pack::KindCount& count = summary.of(kind.kind);
    if (count.frames == 0) continue;
    table.add({kind.what, fmt::format("{}", count.frames), size_text(count.contents),
               fmt::format("{:.1f} %", percent(count.contents, summary.size)), size_text(count.stored)});
  }
  text += "\n" + table.text();
  if (const std::vector<std::uint32_t> sizes = compressed_sizes(one.index); !sizes.empty()) {
    text += fmt::format("\n  a compressed frame has {} in the middle, {} to {}\n", size_text({quantile(sizes, 0.5)}),
                        size_text({sizes.front()}), size_text({sizes.back()}));
  }
  return text;
}

/// Rows of marks, each for the kind that most of its frames are of.
std::string picture(const pack::Index& index) {
  constexpr std::uint64_t kColumns = 64;
  constexpr std::uint64_t kRows = 24;
  const std::uint64_t cells = std::min(kColumns * kRows, index.frames());
  std::string text = "\n  ";
  for (std::uint64_t cell = 0; cell < cells; ++cell) {
    std::array<std::uint64_t, kKinds.size()> counts{};
    const std::uint64_t end = (cell + 1) * index.frames() / cells;
    for (std::uint64_t number = cell * index.frames() / cells; number < end; ++number) {
      const auto* const kind = std::ranges::find(kKinds, index.frame(number).kind, &KindName::kind);
      ++counts.at(static_cast<std::size_t>(kind - kKinds.begin()));
    }
    if (cell != 0 && cell % kColumns == 0) text += "\n  ";
    text += kKinds.at(static_cast<std::size_t>(std::ranges::max_element(counts) - counts.begin())).mark;
  }
  text +=
      fmt::format("\n\n  a mark is {}:", size_text({(index.frames() + cells - 1) / cells * index.frame_size().value}));
  for (const KindName& kind : kKinds) text += fmt::format("  {} {}", kind.mark, kind.what);
  return text + "\n";
}

}  // namespace

Result<int> run_inspect(const InspectCommand& command) {
  const pack::Pack one = UFFDA_TRY(pack::open_top(command.pack));
  const pack::Summary summary = pack::summary_of(one.index, one.header.file_size);
  fmt::print("{}", command.json ? as_json(one, summary) : as_text(one, summary));
  if (command.map && !command.json) fmt::print("{}", picture(one.index));
  return 0;
}

}  // namespace uffda::cli
