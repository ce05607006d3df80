// Tables and sizes for people.
#include "cli/table.h"

#include <gtest/gtest.h>

namespace uffda::cli {
namespace {

TEST(Table, AlignsColumnsAndEndsLinesWithoutSpaces) {
  Table table({"name", "n"});
  table.align(1, Align::right);
  table.add({"a", "1"});
  table.add({"longer", "1000"});
  EXPECT_EQ(table.text(), "  name       n\n  a          1\n  longer  1000\n");
}

TEST(Table, RowsMayBeShort) {
  Table table({"a", "b"});
  table.add({"only"});
  EXPECT_EQ(table.text(0), "a     b\nonly\n");
}

TEST(SizeText, HasAUnitAndOneDigit) {
  EXPECT_EQ(size_text({0}), "0 B");
  EXPECT_EQ(size_text({1023}), "1023 B");
  EXPECT_EQ(size_text(4_KiB), "4 KiB");
  EXPECT_EQ(size_text({1536}), "1.5 KiB");
  EXPECT_EQ(size_text(400_MiB), "400 MiB");
  EXPECT_EQ(size_text({412'345'678}), "393 MiB");
  EXPECT_EQ(size_text(12_GiB), "12 GiB");
}

}  // namespace
}  // namespace uffda::cli
