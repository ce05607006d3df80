// What is particular to rados: and to storing there, over a real cluster.
#include <gtest/gtest.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <fstream>
#include <functional>
#include <random>

#include "cli/put.h"
#include "contract/source_contract.h"
#include "sources/rados_header.h"
#include "support/ceph.h"
#include "support/test_support.h"
#include "uffda/source_registry.h"

namespace uffda::test {
namespace {

using sources::rados::Header;

class Rados : public testing::Test {
 protected:
  void SetUp() override {
    const Result<CephCluster*> cluster = CephCluster::shared();
    if (!cluster && cluster.error().code() == Errc::unsupported) GTEST_SKIP() << cluster.error().message();
    ASSERT_TRUE(cluster.has_value()) << cluster.error().message();
    cluster_ = *cluster;
    object_ = cluster_->fresh_name();
    uri_ = cluster_->uri(object_);
  }

  /// Stores `bytes` in pieces of kPiece.
  void put(std::span<const std::byte> bytes, bool replace = false) const {
    auto writer = create_source(uri_ + "&object-size=64K", {.size = {bytes.size()}, .replace = replace});
    ASSERT_TRUE(writer.has_value()) << writer.error().message();
    const auto written = (*writer)->write({0}, bytes);
    ASSERT_TRUE(written.has_value()) << written.error().message();
    const auto finished = (*writer)->finish();
    ASSERT_TRUE(finished.has_value()) << finished.error().message();
  }

  [[nodiscard]] std::unique_ptr<PageSource> open(const std::string& more = "") const {
    auto source = open_source(uri_ + more);
    if (!source) ADD_FAILURE() << source.error().message();
    return source ? *std::move(source) : nullptr;
  }

  [[nodiscard]] std::vector<std::string> pieces() const { return cluster_->objects(object_ + "."); }

  CephCluster* cluster_ = nullptr;
  std::string object_;
  std::string uri_;
};

std::vector<std::byte> pattern(std::uint64_t size) {
  std::vector<std::byte> bytes(size);
  Pattern::fill(bytes, 0);
  return bytes;
}

/// Asks again until it is so; the answer is the only event there is to wait for.
bool eventually(const std::function<bool()>& so) {
  const Deadline deadline = soon();
  while (!so()) {
    if (deadline.passed()) return false;
    ::poll(nullptr, 0, 5);
  }
  return true;
}

/// The OSD stands still while this lives.
class StoppedOsd {
 public:
  explicit StoppedOsd(const CephCluster& cluster) : cluster_(cluster) { cluster_.stop_osd(); }
  StoppedOsd(const StoppedOsd&) = delete;
  StoppedOsd& operator=(const StoppedOsd&) = delete;
  ~StoppedOsd() { cluster_.continue_osd(); }

 private:
  const CephCluster& cluster_;
};

TEST_F(Rados, has_64_reads_under_way_before_any_is_answered) {
  constexpr std::size_t kReads = 64;
  put(pattern(kReads * kPiece));
  const auto source = open();
  ASSERT_NE(source, nullptr);
  std::array<Answer, kReads> answers;
  std::vector<Buffer> buffers;
  for (std::size_t i = 0; i < kReads; ++i) buffers.emplace_back(4096);
  {
    const StoppedOsd stopped(*cluster_);
    for (std::size_t i = 0; i < kReads; ++i) start_fetch(*source, answers[i], i * kPiece, buffers[i].bytes());
    EXPECT_TRUE(eventually([&] { return cluster_->requests_under_way() >= kReads; })) << cluster_->requests_under_way();
    for (const Answer& answer : answers) EXPECT_EQ(answer.count(), 0);
  }
  for (std::size_t i = 0; i < kReads; ++i) {
    ASSERT_TRUE(answers[i].wait().has_value());
    EXPECT_EQ(Pattern::mismatch(buffers[i].bytes(), i * kPiece), std::nullopt);
  }
}

TEST_F(Rados, a_cluster_that_hangs_fails_the_fetch_at_its_deadline_and_never_writes_to_its_buffer_again) {
  put(pattern(4 * kPiece));
  const auto source = open();
  ASSERT_NE(source, nullptr);
  const Buffer buffer(2 * kPiece);
  {
    const StoppedOsd stopped(*cluster_);
    const auto late = fetch(*source, kPiece, buffer.bytes(), Deadline::after(std::chrono::milliseconds(200)));
    ASSERT_FALSE(late.has_value());
    EXPECT_EQ(late.error().code(), Errc::timed_out);
    std::ranges::fill(buffer.bytes(), std::byte{0x5A});
  }
  // What the OSD answers now was asked behind the reads that were given up.
  const Buffer other(2 * kPiece);
  ASSERT_TRUE(fetch(*source, kPiece, other.bytes()).has_value());
  EXPECT_EQ(Pattern::mismatch(other.bytes(), kPiece), std::nullopt);
  EXPECT_TRUE(std::ranges::all_of(buffer.bytes(), [](std::byte byte) { return byte == std::byte{0x5A}; }));
}

TEST_F(Rados, a_source_that_goes_while_the_cluster_hangs_answers_what_was_asked) {
  put(pattern(kPiece));
  auto source = open();
  ASSERT_NE(source, nullptr);
  const Buffer buffer(4096);
  Answer answer;
  const StoppedOsd stopped(*cluster_);
  start_fetch(*source, answer, 0, buffer.bytes());
  source.reset();
  EXPECT_EQ(answer.count(), 1);
  EXPECT_EQ(answer.wait().error().code(), Errc::cancelled);
}

TEST_F(Rados, a_read_is_asked_again_until_its_own_deadline) {
  put(pattern(kPiece));
  const auto source = open("&timeout=1s");  // librados gives every request up after that
  ASSERT_NE(source, nullptr);
  const Buffer buffer(4096);
  Answer answer;
  {
    const StoppedOsd stopped(*cluster_);
    const std::uint64_t before = cluster_->requests_sent();
    start_fetch(*source, answer, 0, buffer.bytes());
    EXPECT_TRUE(eventually([&] { return cluster_->requests_sent() >= before + 2; }));
    EXPECT_EQ(answer.count(), 0);
  }
  ASSERT_TRUE(answer.wait().has_value());
  EXPECT_EQ(Pattern::mismatch(buffer.bytes(), 0), std::nullopt);
}

TEST_F(Rados, a_missing_piece_and_a_short_one_are_errors_and_never_zeroes) {
  put(pattern(4 * kPiece));
  const auto source = open();
  ASSERT_NE(source, nullptr);
  std::vector<std::string> names = pieces();
  ASSERT_EQ(names.size(), 4U);
  std::ranges::sort(names);
  ASSERT_TRUE(cluster_->rados({"rm", names[1]}).has_value());
  ASSERT_TRUE(cluster_->rados({"truncate", names[2], "60000"}).has_value());
  const Buffer buffer(4096);
  const auto missing = fetch(*source, kPiece, buffer.bytes());
  ASSERT_FALSE(missing.has_value());
  EXPECT_EQ(missing.error().code(), Errc::io);
  EXPECT_NE(missing.error().message().find("is gone"), std::string::npos) << missing.error().message();
  const auto cut = fetch(*source, 2 * kPiece + 58000, buffer.bytes());
  ASSERT_FALSE(cut.has_value());
  EXPECT_EQ(cut.error().code(), Errc::io);
  EXPECT_NE(cut.error().message().find("too short"), std::string::npos) << cut.error().message();
  EXPECT_TRUE(fetch(*source, 2 * kPiece, buffer.bytes()).has_value()) << "what it has is right";
  const Buffer across(3 * kPiece);
  EXPECT_FALSE(fetch(*source, kPiece / 2, across.bytes()).has_value()) << "one part of several is missing";
}

TEST_F(Rados, pieces_of_zeroes_are_not_stored) {
  std::vector<std::byte> bytes(10 * kPiece + 100);
  Pattern::fill(std::span(bytes).subspan(3 * kPiece, 100), 0);
  const PatternFile file(1);
  std::ofstream(file.path(), std::ios::binary).write(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const auto done =
      cli::put({.input = file.path(), .uri = uri_ + "&object-size=64K"}, [](const auto&) { return true; });
  ASSERT_TRUE(done.has_value()) << done.error().message();
  EXPECT_EQ(done->stored.value, 4096U);
  EXPECT_EQ(pieces().size(), 1U);
  const auto source = open();
  ASSERT_NE(source, nullptr);
  const Buffer buffer(bytes.size());
  ASSERT_TRUE(fetch(*source, 0, buffer.bytes()).has_value());
  EXPECT_TRUE(std::ranges::equal(buffer.bytes(), bytes));
  const auto extents = source->extents({{100}, {bytes.size() - 100}});
  ASSERT_TRUE(extents.has_value());
  EXPECT_EQ(*extents, (std::vector<Extent>{{{{100}, {3 * kPiece - 100}}, Extent::Kind::zero},
                                           {{{3 * kPiece}, {kPiece}}, Extent::Kind::data},
                                           {{{4 * kPiece}, {6 * kPiece + 100}}, Extent::Kind::zero}}));
}

TEST_F(Rados, what_is_there_is_replaced_only_when_asked_and_a_reader_never_sees_a_mixture) {
  const std::vector<std::byte> old(3 * kPiece, std::byte{1});
  const std::vector<std::byte> anew(3 * kPiece, std::byte{2});
  put(old);
  const auto refused = create_source(uri_, {.size = {kPiece}});
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code(), Errc::already_exists);
  EXPECT_NE(refused.error().message().find("--replace"), std::string::npos);

  const auto reader = open();
  ASSERT_NE(reader, nullptr);
  const Buffer buffer(kPiece);
  ASSERT_TRUE(fetch(*reader, 0, buffer.bytes()).has_value());
  put(anew, true);
  for (std::uint64_t at = 0; at < old.size(); at += kPiece) {
    const auto done = fetch(*reader, at, buffer.bytes());
    EXPECT_FALSE(done.has_value() && buffer.bytes()[0] != std::byte{1}) << "bytes of another image at " << at;
  }
  const auto source = open();
  ASSERT_NE(source, nullptr);
  const Buffer whole(anew.size());
  ASSERT_TRUE(fetch(*source, 0, whole.bytes()).has_value());
  EXPECT_TRUE(std::ranges::equal(whole.bytes(), anew));
  EXPECT_EQ(pieces().size(), 3U) << "the old ones are gone";
}

TEST_F(Rados, a_reader_keeps_the_old_bytes_until_the_new_header_stands) {
  put(pattern(2 * kPiece));
  const auto reader = open();
  ASSERT_NE(reader, nullptr);
  auto writer = create_source(uri_, {.size = {2 * kPiece}, .replace = true});
  ASSERT_TRUE(writer.has_value()) << writer.error().message();
  ASSERT_TRUE((*writer)->write({0}, std::vector<std::byte>(2 * kPiece, std::byte{9})).has_value());
  const Buffer buffer(2 * kPiece);
  ASSERT_TRUE(fetch(*reader, 0, buffer.bytes()).has_value());
  EXPECT_EQ(Pattern::mismatch(buffer.bytes(), 0), std::nullopt);
  writer->reset();
  ASSERT_TRUE(fetch(*open(), 0, buffer.bytes()).has_value());
  EXPECT_EQ(Pattern::mismatch(buffer.bytes(), 0), std::nullopt);
  EXPECT_EQ(pieces().size(), 2U) << "those of the writer that was dropped are gone";
}

TEST_F(Rados, a_writer_that_is_dropped_leaves_nothing) {
  auto writer = create_source(uri_ + "&object-size=64K", {.size = {4 * kPiece}});
  ASSERT_TRUE(writer.has_value()) << writer.error().message();
  ASSERT_TRUE((*writer)->write({0}, pattern(3 * kPiece)).has_value());
  EXPECT_EQ(open_source(uri_).error().code(), Errc::not_found);
  writer->reset();
  EXPECT_EQ(open_source(uri_).error().code(), Errc::not_found);
  EXPECT_TRUE(pieces().empty());
}

TEST_F(Rados, of_two_that_store_under_one_name_the_first_to_finish_wins) {
  for (const bool replace : {false, true}) {
    auto first = create_source(uri_, {.size = {kPiece}, .replace = replace});
    auto second = create_source(uri_, {.size = {kPiece}, .replace = replace});
    ASSERT_TRUE(first.has_value() && second.has_value());
    ASSERT_TRUE((*first)->write({0}, std::vector<std::byte>(kPiece, std::byte{1})).has_value());
    ASSERT_TRUE((*second)->write({0}, std::vector<std::byte>(kPiece, std::byte{2})).has_value());
    ASSERT_TRUE((*first)->finish().has_value());
    const auto late = (*second)->finish();
    ASSERT_FALSE(late.has_value());
    EXPECT_EQ(late.error().code(), replace ? Errc::busy : Errc::already_exists) << late.error().message();
    second->reset();
    EXPECT_EQ(pieces().size(), 1U);
    const Buffer buffer(kPiece);
    ASSERT_TRUE(fetch(*open(), 0, buffer.bytes()).has_value());
    EXPECT_EQ(buffer.bytes()[100], std::byte{1});
  }
}

TEST_F(Rados, an_object_of_somebody_else_is_neither_opened_nor_replaced) {
  const PatternFile file(1000);
  ASSERT_TRUE(cluster_->rados({"put", object_, file.path()}).has_value());
  EXPECT_EQ(open_source(uri_).error().code(), Errc::invalid_argument);
  for (const bool replace : {false, true}) {
    const auto refused = create_source(uri_, {.size = {kPiece}, .replace = replace});
    ASSERT_FALSE(refused.has_value());
    EXPECT_EQ(refused.error().code(), Errc::already_exists) << refused.error().message();
  }
}

TEST_F(Rados, a_damaged_header_is_refused) {
  put(pattern(kPiece));
  const PatternFile file(1);
  ASSERT_TRUE(cluster_->rados({"get", object_, file.beside("header")}).has_value());
  std::fstream header(file.beside("header"), std::ios::in | std::ios::out | std::ios::binary);
  header.seekp(17).put('\1');
  header.close();
  ASSERT_TRUE(cluster_->rados({"put", object_, file.beside("header")}).has_value());
  const auto refused = open_source(uri_);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code(), Errc::invalid_argument);
  EXPECT_NE(refused.error().message().find("damaged"), std::string::npos) << refused.error().message();
}

TEST_F(Rados, what_is_wrong_is_said_with_what_would_be_right) {
  const auto refused = [](const std::string& uri) { return open_source(uri).error(); };
  const std::string parameters = uri_.substr(uri_.find('?'));
  EXPECT_EQ(refused("rados:uffda").code(), Errc::invalid_argument);
  EXPECT_EQ(refused("rados:/x").code(), Errc::invalid_argument);
  const Error pool = refused("rados:nosuch/x" + parameters);
  EXPECT_EQ(pool.code(), Errc::not_found);
  EXPECT_NE(pool.message().find("ceph osd pool create nosuch"), std::string::npos) << pool.message();
  const Error object = refused(uri_);
  EXPECT_EQ(object.code(), Errc::not_found);
  EXPECT_NE(object.message().find("uffda put"), std::string::npos) << object.message();
  EXPECT_EQ(refused("rados:uffda/x?conf=/nosuch.conf").code(), Errc::not_found);
  const Error silent = refused(uri_ + "&mon_host=127.0.0.1:1&timeout=1s");
  EXPECT_EQ(silent.code(), Errc::timed_out);
  EXPECT_NE(silent.message().find("mon_host="), std::string::npos) << silent.message();
}

TEST_F(Rados, namespaces_are_apart) {
  put(pattern(kPiece));
  EXPECT_EQ(open_source(uri_ + "&namespace=other").error().code(), Errc::not_found);
  const auto done = cli::put({.input = uri_, .uri = uri_ + "&namespace=other"}, [](const auto&) { return true; });
  ASSERT_TRUE(done.has_value()) << done.error().message();
  EXPECT_NE(open("&namespace=other"), nullptr);
}

}  // namespace
}  // namespace uffda::test
