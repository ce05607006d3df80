// Aligned tables for people.
#pragma once

#include <string>
#include <vector>

#include "uffda/units.h"

namespace uffda::cli {

enum class Align : bool { left, right };

/// Rows of cells, printed with every column as wide as its widest cell and two spaces between columns.
class Table {
 public:
  explicit Table(std::vector<std::string> heading) : rows_{std::move(heading)} {}
  void align(std::size_t column, Align align);
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  /// Lines with `indent` spaces in front; no spaces at their ends.
  [[nodiscard]] std::string text(std::size_t indent = 2) const;

 private:
  [[nodiscard]] std::vector<std::size_t> widths() const;

  std::vector<std::vector<std::string>> rows_;  // the first is the heading; may be empty
  std::vector<Align> aligns_;
};

/// 512 B, 64 KiB, 1.5 MiB, 12 GiB: at most one digit behind the point.
std::string size_text(ByteCount size);

}  // namespace uffda::cli
