// Merges what the benchmarks wrote and prints it as one table. Usage: table OUT.json IN.json...
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/bench.h"

namespace {

using nlohmann::ordered_json;

constexpr std::size_t kColumns = 7;
using Row = std::array<std::string, kColumns>;

std::string number(double value) { return fmt::format("{:.{}f}", value, value < 10 ? 2 : value < 1000 ? 1 : 0); }

Row row_of(const ordered_json& comparison) {
  std::string target;
  std::string verdict;
  if (comparison.contains("ok")) {
    const bool most = comparison.contains("at_most");
    target = fmt::format("{} {:.2f}", most ? "<=" : ">=", comparison[most ? "at_most" : "at_least"].get<double>());
    verdict = comparison["ok"].get<bool>() ? "ok" : "short";
  }
  const auto unit = comparison["unit"].get<std::string>();
  return {comparison["name"].get<std::string>(),
          fmt::format("{} {}", number(comparison["uffda"].get<double>()), unit),
          comparison["peer"].get<std::string>(),
          fmt::format("{} {}", number(comparison["peer_value"].get<double>()), unit),
          fmt::format("{:.2f}", comparison["ratio"].get<double>()),
          target,
          verdict};
}

/// What the program `stages` found has no peer: a list of its own.
void print_stages(const ordered_json& program) {
  std::puts("\nWhere the time of a cold random 4 KiB fault goes, mean, us:");
  for (const ordered_json& figure : program["figures"]) {
    std::printf("  %-52s %7s\n", figure["way"].get<std::string>().c_str(), number(figure["p50"].get<double>()).c_str());
  }
}

/// Names to the left, figures to the right.
void print(const std::vector<Row>& rows) {
  constexpr std::array<bool, kColumns> kLeft{true, false, true, false, false, false, true};
  std::array<std::size_t, kColumns> width{};
  for (const Row& row : rows) {
    for (std::size_t i = 0; i < kColumns; ++i) width.at(i) = std::max(width.at(i), row.at(i).size());
  }
  for (const Row& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < kColumns; ++i) {
      line += kLeft.at(i) ? fmt::format("{:<{}}  ", row.at(i), width.at(i))
                          : fmt::format("{:>{}}  ", row.at(i), width.at(i));
    }
    line.erase(line.find_last_not_of(' ') + 1);
    std::puts(line.c_str());
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) bench::die("usage: table OUT.json IN.json...");
  ordered_json merged;
  merged["programs"] = ordered_json::array();
  std::vector<Row> rows{{"name", "uffda", "peer", "", "ratio", "target", ""}};
  std::vector<std::string> skipped;
  for (int i = 2; i < argc; ++i) {
    std::ifstream file(argv[i]);
    const ordered_json program = ordered_json::parse(file, nullptr, /*allow_exceptions=*/false);
    if (program.is_discarded()) bench::die(fmt::format("{} is not what a benchmark writes", argv[i]));
    for (const ordered_json& comparison : program["comparisons"]) rows.push_back(row_of(comparison));
    for (const ordered_json& skip : program["skipped"]) {
      skipped.push_back(
          fmt::format("not measured: {}: {}", skip["what"].get<std::string>(), skip["why"].get<std::string>()));
    }
    merged["programs"].push_back(program);
  }
  print(rows);
  for (const std::string& line : skipped) std::puts(line.c_str());
  for (const ordered_json& program : merged["programs"]) {
    if (program["program"] == "stages" && !program["figures"].empty()) print_stages(program);
  }
  std::ofstream out(argv[1]);
  out << merged.dump(2) << "\n";
  if (!out.flush()) bench::die(fmt::format("cannot write {}", argv[1]));
  const auto targets =
      std::ranges::count_if(rows, [](const Row& row) { return row.back() == "ok" || row.back() == "short"; });
  const auto missed = std::ranges::count_if(rows, [](const Row& row) { return row.back() == "short"; });
  std::printf("\n%td of %td targets are met. Every figure, with p50, p90, p99 and mean: %s\n", targets - missed,
              targets, argv[1]);
  return 0;
}
