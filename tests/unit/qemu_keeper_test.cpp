// What is kept of a restore, as notes tell of it; and a monitor's connection that another process has had before.
#include "qemu/keeper.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <span>
#include <string_view>

#include "os/socket.h"
#include "qemu/qmp.h"

namespace uffda::qemu {
namespace {

os::UniqueFd an_end() { return std::move(os::make_stream_pair()->first); }

TEST(QemuKept, ASpareIsTheStreamFromWhenItIsHandedOverUntilItIsLetGo) {
  Kept kept;
  ASSERT_TRUE(kept.apply(Note::spare, 5, an_end()));
  ASSERT_TRUE(kept.apply(Note::spare, 6, an_end()));
  EXPECT_FALSE(kept.apply(Note::handing, 7, {}));
  ASSERT_TRUE(kept.apply(Note::handing, 5, {}));
  ASSERT_TRUE(kept.stream);
  EXPECT_EQ(kept.stream->number, 5U);
  EXPECT_FALSE(kept.taken);
  ASSERT_EQ(kept.spares.size(), 1U);
  ASSERT_TRUE(kept.apply(Note::taken, 0, {}));
  EXPECT_TRUE(kept.taken);
  ASSERT_TRUE(kept.apply(Note::let_go, 0, {}));
  EXPECT_FALSE(kept.stream);
  ASSERT_TRUE(kept.apply(Note::handing, 6, {}));
  EXPECT_FALSE(kept.taken);
  EXPECT_TRUE(kept.spares.empty());
}

TEST(QemuKept, BeginsWithNothing) {
  Kept kept;
  EXPECT_FALSE(kept.begun);
  EXPECT_FALSE(kept.apply(Note::handing, 0, {}));
  ASSERT_TRUE(kept.apply(Note::monitor, 3, an_end()));
  ASSERT_TRUE(kept.apply(Note::begun, 0, {}));
  EXPECT_EQ(kept.restores, 3U);
  EXPECT_TRUE(kept.monitor);
  EXPECT_TRUE(kept.begun);
}

TEST(QemuQmp, AnswersToTheOneBeforeAreSkipped) {
  auto ends = os::make_stream_pair();
  ASSERT_TRUE(ends);
  const std::string_view come =
      "rest of an answer\"}}\n"
      "{\"return\": {\"status\": \"theirs\"}, \"id\": \"uffda-0-0\"}\n"
      "{\"event\": \"STOP\"}\n"
      "{\"error\": {\"desc\": \"theirs\"}, \"id\": \"uffda-1-0\"}\n"
      "{\"return\": {\"status\": \"ours\"}, \"id\": \"uffda-2-0\"}\n"
      "{\"return\": {\"status\": \"later\"}, \"id\": \"uffda-2-1\"}\n"
      "{\"return\": {}, \"id\": \"uffda-2-2\"}\n"
      "no answer\n";
  ASSERT_TRUE(os::send_some(ends->second.get(), std::as_bytes(std::span(come))));
  Qmp qmp = Qmp::adopt(std::move(ends->first), "socket", 2);
  const auto ours = qmp.execute("query-migrate");
  ASSERT_TRUE(ours);
  EXPECT_EQ(text_of(*ours, "status"), "ours");
  ASSERT_TRUE(qmp.ask("query-migrate"));
  EXPECT_FALSE(qmp.take_answer());
  ASSERT_TRUE(qmp.execute_out_of_band("migrate-pause", nlohmann::json::object()));
  const auto asked = qmp.take_answer();
  ASSERT_TRUE(asked);
  EXPECT_EQ(text_of(*asked, "status"), "later");
  EXPECT_EQ(qmp.execute("query-migrate").error().code(), Errc::protocol);
}

}  // namespace
}  // namespace uffda::qemu
