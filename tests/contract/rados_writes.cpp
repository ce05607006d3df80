// Writes to an image in a real cluster: what was acknowledged is there, whoever opens it, and one writes at a time.
#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <random>
#include <vector>

#include "contract/source_contract.h"
#include "support/ceph.h"
#include "support/test_support.h"
#include "uffda/source_registry.h"
#include "uffda/uffda.h"

namespace uffda::test {
namespace {

constexpr std::uint64_t kImageBytes = 32 * kPiece + 4321;

class RadosWrites : public testing::Test {
 protected:
  void SetUp() override {
    const Result<CephCluster*> cluster = CephCluster::shared();
    if (!cluster && cluster.error().code() == Errc::unsupported) GTEST_SKIP() << cluster.error().message();
    ASSERT_TRUE(cluster.has_value()) << cluster.error().message();
    cluster_ = *cluster;
    object_ = cluster_->fresh_name();
    uri_ = cluster_->uri(object_);
    // The second half has no objects.
    std::vector<std::byte> bytes(kImageBytes / 2);
    Pattern::fill(bytes, 0);
    model_.resize(kImageBytes);
    std::ranges::copy(bytes, model_.begin());
    auto writer = create_source(uri_ + "&object-size=64K", {.size = {kImageBytes}});
    ASSERT_TRUE(writer.has_value()) << writer.error().message();
    ASSERT_TRUE((*writer)->write({0}, bytes));
    const auto finished = (*writer)->finish();
    ASSERT_TRUE(finished.has_value()) << finished.error().message();
  }

  [[nodiscard]] std::unique_ptr<PageSource> open(OpenFor what_for) const {
    auto source = open_source(uri_, what_for);
    if (!source) ADD_FAILURE() << source.error().message();
    return source ? *std::move(source) : nullptr;
  }
  static void start(PageSource& source, WriteAnswer& answer, std::uint64_t at, std::span<const std::byte> bytes,
                    Deadline deadline = Deadline::after(std::chrono::seconds(30))) {
    source.write_back(WriteTicket(answer, nullptr, {at}, bytes, deadline));
  }
  static Result<void> write(PageSource& source, std::uint64_t at, std::span<const std::byte> bytes) {
    WriteAnswer answer;
    start(source, answer, at, bytes);
    return answer.wait();
  }
  /// The first byte that is not the model's.
  [[nodiscard]] std::optional<std::size_t> mismatch(PageSource& source) const {
    const Buffer buffer(kImageBytes);
    const auto done = fetch(source, 0, buffer.bytes());
    EXPECT_TRUE(done.has_value()) << done.error().message();
    const auto where = std::ranges::mismatch(buffer.bytes(), model_).in2;
    if (where == model_.end()) return std::nullopt;
    return static_cast<std::size_t>(where - model_.begin());
  }

  CephCluster* cluster_ = nullptr;
  std::string object_;
  std::string uri_;
  std::vector<std::byte> model_;
};

TEST_F(RadosWrites, of_any_size_anywhere_are_there_for_whoever_opens_it_next) {
  std::mt19937_64 random(7);
  for (unsigned round = 0; round < 3; ++round) {
    const auto source = open(OpenFor::writing);
    ASSERT_NE(source, nullptr);
    EXPECT_TRUE(source->properties().writable);
    for (unsigned i = 0; i < 60; ++i) {
      const std::uint64_t at = random() % kImageBytes;
      const std::uint64_t limit = std::min<std::uint64_t>(kImageBytes - at, i % 4 == 0 ? 3 * kPiece : 9000);
      const std::span<std::byte> bytes = std::span(model_).subspan(at, 1 + random() % limit);
      for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
      const auto written = write(*source, at, bytes);
      ASSERT_TRUE(written) << written.error().message();
    }
    EXPECT_EQ(mismatch(*source), std::nullopt);
    EXPECT_TRUE(source->flush());
    EXPECT_EQ(mismatch(*open(OpenFor::reading)), std::nullopt) << "also while it is open";
  }
  EXPECT_EQ(mismatch(*open(OpenFor::reading)), std::nullopt);
}

TEST_F(RadosWrites, many_are_under_way_also_to_pieces_that_were_not_there) {
  const auto source = open(OpenFor::writing);
  ASSERT_NE(source, nullptr);
  constexpr std::uint64_t kStep = kPiece / 2;
  std::array<WriteAnswer, kImageBytes / kStep> answers;
  for (std::uint64_t i = 0; i < answers.size(); ++i) {
    const std::span<std::byte> bytes = std::span(model_).subspan(i * kStep + 1000, 3000);
    Pattern::fill(bytes, 7 * i);
    start(*source, answers[i], i * kStep + 1000, bytes);
  }
  for (WriteAnswer& answer : answers) {
    const auto written = answer.wait();
    EXPECT_TRUE(written) << written.error().message();
  }
  EXPECT_EQ(mismatch(*source), std::nullopt);
  EXPECT_EQ(mismatch(*open(OpenFor::reading)), std::nullopt);
  const auto extents = source->extents({{0}, {kImageBytes}});
  ASSERT_TRUE(extents);
  EXPECT_EQ(*extents, (std::vector<Extent>{{{{0}, {32 * kPiece}}, Extent::Kind::data},
                                           {{{32 * kPiece}, {4321}}, Extent::Kind::zero}}))
      << "what was written is data, and the end was not";
}

TEST_F(RadosWrites, mapped_memory_comes_to_the_cluster_with_an_eighth_of_it_as_budget) {
  if (const auto engine = Engine::create(); !engine) GTEST_SKIP() << engine.error().message();
  {
    auto engine = Engine::create({.budget = {kImageBytes / 8}});
    ASSERT_TRUE(engine);
    auto memory = engine->map(uri_, {.access = Access::written_back});
    ASSERT_TRUE(memory) << memory.error().message();
    std::mt19937_64 random(3);
    for (unsigned i = 0; i < 1500; ++i) {
      const std::uint64_t at = random() % kImageBytes;
      ASSERT_EQ(memory->bytes()[at], model_[at]) << at;
      memory->writable_bytes()[at] = model_[at] = static_cast<std::byte>(random());
    }
    const auto synced = memory->sync(Deadline::after(std::chrono::seconds(30)));
    ASSERT_TRUE(synced) << synced.error().message();
    EXPECT_EQ(mismatch(*open(OpenFor::reading)), std::nullopt);
  }
}

TEST_F(RadosWrites, come_from_one_at_a_time) {
  auto first = open(OpenFor::writing);
  ASSERT_NE(first, nullptr);
  const auto second = open_source(uri_, OpenFor::writing);
  ASSERT_FALSE(second.has_value());
  EXPECT_EQ(second.error().code(), Errc::busy);
  EXPECT_NE(second.error().message().find("process " + std::to_string(::getpid())), std::string::npos)
      << second.error().message();
  const auto replacing = create_source(uri_, {.size = {kPiece}, .replace = true});
  ASSERT_FALSE(replacing.has_value());
  EXPECT_EQ(replacing.error().code(), Errc::busy) << replacing.error().message();
  ASSERT_TRUE(write(*first, 0, std::span(model_).first(10)));
  first.reset();
  EXPECT_NE(open(OpenFor::writing), nullptr) << "at once";
}

TEST_F(RadosWrites, make_a_put_fail_that_began_before) {
  auto writer = create_source(uri_, {.size = {kPiece}, .replace = true});
  ASSERT_TRUE(writer.has_value()) << writer.error().message();
  ASSERT_TRUE((*writer)->write({0}, std::span(model_).first(kPiece)));
  const auto source = open(OpenFor::writing);
  ASSERT_NE(source, nullptr);
  const auto finished = (*writer)->finish();
  ASSERT_FALSE(finished.has_value());
  EXPECT_EQ(finished.error().code(), Errc::busy) << finished.error().message();
  writer->reset();
  EXPECT_EQ(mismatch(*source), std::nullopt);
}

TEST_F(RadosWrites, of_one_who_was_taken_over_from_are_refused_for_good) {
  const auto sleeper = open(OpenFor::writing);
  ASSERT_NE(sleeper, nullptr);
  ASSERT_TRUE(write(*sleeper, 0, std::span(model_).first(10)));
  // As if its lock had ended while it slept.
  const auto info = cluster_->rados({"lock", "info", object_, "uffda.writer"});
  ASSERT_TRUE(info.has_value()) << info.error().message();
  const std::string locker = info->substr(info->find("\"lockers\""));
  const auto field = [&](const std::string& name) {
    const std::size_t at = locker.find('"' + name + "\":\"") + name.size() + 4;
    return locker.substr(at, locker.find('"', at) - at);
  };
  const auto broken =
      cluster_->rados({"lock", "break", object_, "uffda.writer", field("name"), "--lock-cookie", field("cookie")});
  ASSERT_TRUE(broken.has_value()) << broken.error().message() << *info;
  const auto successor = open(OpenFor::writing);
  ASSERT_NE(successor, nullptr);
  const std::vector<std::byte> stale(5000, std::byte{0x77});
  for (const std::uint64_t at : {std::uint64_t{0}, kPiece, kImageBytes - 6000}) {
    const auto refused = write(*sleeper, at, stale);
    ASSERT_FALSE(refused) << "a piece that nobody wrote to, and one that is not there";
    EXPECT_EQ(refused.error().code(), Errc::io) << refused.error().message();
  }
  std::ranges::fill(std::span(model_).subspan(100, 3 * kPiece), std::byte{1});
  ASSERT_TRUE(write(*successor, 100, std::span(model_).subspan(100, 3 * kPiece)));
  EXPECT_EQ(mismatch(*successor), std::nullopt);
}

TEST_F(RadosWrites, that_a_cluster_does_not_answer_fail_in_time_and_never_come_after_newer_ones) {
  const auto source = open(OpenFor::writing);
  ASSERT_NE(source, nullptr);
  const std::uint64_t places[] = {10, kPiece - 100, kImageBytes - 5000};
  const std::vector<std::byte> old(4096, std::byte{1});
  std::array<WriteAnswer, 3> late;
  std::array<WriteAnswer, 3> newer;
  cluster_->stop_osd();
  for (unsigned i = 0; i < 3; ++i)
    start(*source, late[i], places[i], old, Deadline::after(std::chrono::milliseconds(200)));
  for (WriteAnswer& answer : late) {
    const auto failed = answer.wait();
    ASSERT_FALSE(failed);
    EXPECT_EQ(failed.error().code(), Errc::timed_out) << failed.error().message();
  }
  for (unsigned i = 0; i < 3; ++i) {
    const std::span<std::byte> bytes = std::span(model_).subspan(places[i], 4096);
    std::ranges::fill(bytes, std::byte{2});
    start(*source, newer[i], places[i], bytes);
  }
  cluster_->continue_osd();
  for (WriteAnswer& answer : newer) {
    const auto written = answer.wait();
    EXPECT_TRUE(written) << written.error().message();
  }
  EXPECT_EQ(mismatch(*source), std::nullopt);
  EXPECT_EQ(mismatch(*open(OpenFor::reading)), std::nullopt);
}

TEST_F(RadosWrites, are_sent_again_until_their_own_deadline) {
  uri_ += "&timeout=1s";  // librados gives every request up after that
  const auto source = open(OpenFor::writing);
  ASSERT_NE(source, nullptr);
  std::ranges::fill(std::span(model_).first(3000), std::byte{9});
  WriteAnswer answer;
  cluster_->stop_osd();
  const std::uint64_t before = cluster_->requests_sent();
  start(*source, answer, 0, std::span(model_).first(3000));
  const Deadline limit = soon();
  while (cluster_->requests_sent() < before + 2 && !limit.passed()) ::poll(nullptr, 0, 5);
  cluster_->continue_osd();
  const auto written = answer.wait();
  ASSERT_TRUE(written) << written.error().message();
  EXPECT_EQ(mismatch(*source), std::nullopt);
}

TEST_F(RadosWrites, to_a_piece_that_was_removed_are_errors_and_do_not_make_it_anew) {
  const auto source = open(OpenFor::writing);
  ASSERT_NE(source, nullptr);
  const auto pieces = cluster_->objects(object_ + ".");
  for (const std::string& piece : pieces) ASSERT_TRUE(cluster_->rados({"rm", piece}));
  const auto refused = write(*source, 0, std::span(model_).first(100));
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message().find("is gone"), std::string::npos) << refused.error().message();
  EXPECT_TRUE(cluster_->objects(object_ + ".").empty());
}

TEST_F(RadosWrites, change_the_version_that_caches_go_by) {
  const auto version = [&] { return open(OpenFor::reading)->properties().version; };
  const std::string unwritten = version();
  EXPECT_EQ(version(), unwritten);
  auto source = open(OpenFor::writing);
  ASSERT_NE(source, nullptr);
  EXPECT_NE(version(), version()) << "while it is written to";
  source.reset();
  const std::string written = version();
  EXPECT_EQ(version(), written);
  EXPECT_NE(written, unwritten);
}

}  // namespace
}  // namespace uffda::test
