#include "cli/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace uffda::cli {

void Table::align(std::size_t column, Align align) {
  if (aligns_.size() <= column) aligns_.resize(column + 1, Align::left);
  aligns_.at(column) = align;
}

std::vector<std::size_t> Table::widths() const {
  std::vector<std::size_t> widths;
  for (const auto& row : rows_) {
    if (widths.size() < row.size()) widths.resize(row.size());
    for (std::size_t i = 0; i < row.size(); ++i) widths.at(i) = std::max(widths.at(i), row.at(i).size());
  }
  return widths;
}

std::string Table::text(std::size_t indent) const {
  const std::vector<std::size_t> wide = widths();
  std::string text;
  for (const auto& row : rows_) {
    if (row.empty()) continue;
    std::string line(indent, ' ');
    for (std::size_t i = 0; i < row.size(); ++i) {
      const bool right = i < aligns_.size() && aligns_.at(i) == Align::right;
      line += right ? fmt::format("{:>{}}  ", row.at(i), wide.at(i)) : fmt::format("{:<{}}  ", row.at(i), wide.at(i));
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + '\n';
  }
  return text;
}

std::string size_text(ByteCount size) {
  constexpr std::array<const char*, 5> kUnits{"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(size.value);
  std::size_t unit = 0;
  for (; value >= 1024 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  const double rounded = std::round(value * 10) / 10;
  const bool whole = rounded >= 100 || rounded == std::floor(rounded);
  return whole ? fmt::format("{:.0f} {}", rounded, kUnits.at(unit))
               : fmt::format("{:.1f} {}", rounded, kUnits.at(unit));
}

}  // namespace uffda::cli
