// Packs as sources: the suite of all sources over them, and what is theirs alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>

#include "contract/source_contract.h"
#include "sources/pack/pack_source.h"
#include "sources/pack/writer.h"
#include "support/pack_files.h"
#include "support/test_support.h"

namespace uffda::test {
namespace {

using pack::Chain;
using pack::FrameKind;
using pack::WriterOptions;

/// The pattern file packed beside itself.
class PackedFile final : public SourceServer {
 public:
  explicit PackedFile(std::string path) : path_(std::move(path)) {}
  [[nodiscard]] std::string uri() const override { return path_; }

 private:
  std::string path_;
};

auto pack_of(ByteCount frame) {
  return [frame](const PatternFile& file) -> Result<std::unique_ptr<SourceServer>> {
    const auto input = UFFDA_TRY(open_source("file:" + file.path()));
    WriterOptions options = small_frames();
    options.frame_size = frame;
    UFFDA_TRY(pack::write_pack(*input, file.beside("made.pack"), options));
    return std::make_unique<PackedFile>(file.beside("made.pack"));
  };
}

/// Half of the pattern is in a base, with other bytes around it.
Result<std::unique_ptr<SourceServer>> incremental_pack(const PatternFile& file) {
  Bytes old = read_file(file.path());
  std::ranges::fill(std::span(old).subspan(300000, 200000), std::byte{1});
  UFFDA_TRY(pack::write_pack(*bytes_source(old), file.beside("old.pack"), small_frames()));
  const Chain base = UFFDA_TRY(Chain::open(UFFDA_TRY(open_source("file:" + file.beside("old.pack"))), nullptr));
  WriterOptions options = small_frames();
  options.base = &base;
  options.base_name = "old.pack";
  const auto input = UFFDA_TRY(open_source("file:" + file.path()));
  UFFDA_TRY(pack::write_pack(*input, file.beside("new.pack"), options));
  return std::make_unique<PackedFile>(file.beside("new.pack"));
}

const std::vector<SourceCase> kCases{
    {"pack", "pack:#", false, pack_of(64_KiB)},
    {"pack_small_frames", "pack:#", false, pack_of(4_KiB)},
    {"pack_large_frames", "pack:#", false, pack_of(1_MiB)},
    {"pack_of_file", "pack+file:#", false, pack_of(64_KiB)},
    {"pack_direct", "pack+file:#?direct=auto", false, pack_of(16_KiB)},
    {"pack_of_slow_file", "pack+delay+file:#?delay=20us&jitter=20us", false, pack_of(64_KiB)},
    {"pack_incremental", "pack:#", false, incremental_pack},
    {"error_pack", "error+pack:#?rate=0", false, pack_of(64_KiB)},
    {"delay_pack", "delay+pack:#?delay=5us", false, pack_of(64_KiB)},
};

INSTANTIATE_TEST_SUITE_P(Packs, SourceContract, testing::ValuesIn(kCases),
                         [](const testing::TestParamInfo<SourceCase>& info) { return info.param.name; });

/// Opens bytes as a pack with what stands in `bases` behind it.
Result<std::unique_ptr<PageSource>> open_chain_of(Bytes top, std::vector<Bytes> bases) {
  const auto open_base = [&](const pack::Pack&, std::size_t depth) -> Result<std::unique_ptr<PageSource>> {
    if (depth >= bases.size()) return fail(Errc::not_found, "no more bases");
    return bytes_source(bases[depth], "base");
  };
  return pack::make_pack_source(UFFDA_TRY(Chain::open(bytes_source(std::move(top), "top"), open_base)), "pack:top");
}

Bytes packed_on(const Bytes& contents, const std::vector<Bytes>& bases) {
  const auto open_base = [&](const pack::Pack&, std::size_t depth) -> Result<std::unique_ptr<PageSource>> {
    return bytes_source(bases.at(depth + 1));
  };
  const auto chain = Chain::open(bytes_source(bases.at(0)), open_base);
  EXPECT_TRUE(chain.has_value()) << chain.error().message();
  WriterOptions options = small_frames();
  options.base = &*chain;
  options.base_name = "base.pack";
  return packed(contents, options);
}

void expect_contents(PageSource& source, const Bytes& contents) {
  ASSERT_EQ(source.properties().size.value, contents.size());
  Bytes buffer(50000);
  for (std::size_t at = 0; at < contents.size(); at += buffer.size()) {
    const auto bytes = std::span(buffer).first(std::min(buffer.size(), contents.size() - at));
    const auto done = fetch(source, at, bytes);
    ASSERT_TRUE(done.has_value()) << done.error().message();
    ASSERT_TRUE(std::ranges::equal(bytes, std::span(contents).subspan(at, bytes.size()))) << at;
  }
}

TEST(PackChain, is_one_source_and_stores_only_what_changed) {
  std::vector<Bytes> packs;  // newest first
  Bytes contents = mixed_contents(60);
  packs.push_back(packed(contents));
  for (unsigned i = 1; i < 6; ++i) {
    std::ranges::copy(mixed_contents(2, i + 50), contents.begin() + i * 9000);
    if (i == 3) contents.resize(contents.size() + 30000, std::byte{9});
    packs.insert(packs.begin(), packed_on(contents, packs));
    const auto source = open_chain_of(packs.front(), {packs.begin() + 1, packs.end()});
    ASSERT_TRUE(source.has_value()) << source.error().message();
    expect_contents(**source, contents);
    EXPECT_LT(packs.front().size(), packs.back().size() / 2);
  }
}

TEST(PackChain, takes_what_moved_from_the_base_too) {
  const Bytes old = mixed_contents(40);
  Bytes moved(8192 + old.size(), std::byte{3});
  std::ranges::copy(old, moved.begin() + 8192);
  const Bytes base = packed(old);
  const Bytes top = packed_on(moved, {base});
  const auto opened = pack::open_pack(bytes_source(top));
  ASSERT_TRUE(opened.has_value());
  EXPECT_GT(pack::summary_of(opened->index, {}).of(FrameKind::base).frames, 25U);
  const auto source = open_chain_of(top, {base});
  ASSERT_TRUE(source.has_value()) << source.error().message();
  expect_contents(**source, moved);
}

TEST(PackChain, refuses_another_base_than_its_own) {
  const Bytes contents = mixed_contents(20);
  const Bytes base = packed(contents);
  const Bytes top = packed_on(contents, {base});
  const auto other = open_chain_of(top, {packed(mixed_contents(20, 2))});
  ASSERT_FALSE(other.has_value());
  EXPECT_NE(other.error().context().find("is not the base that it was made from"), std::string::npos);
  EXPECT_EQ(open_chain_of(top, {}).error().code(), Errc::not_found);
  EXPECT_FALSE(open_chain_of(top, {top, base}).has_value()) << "a loop";
}

TEST(PackChain, says_that_the_damage_is_in_the_base) {
  const Bytes contents = mixed_contents(20);
  Bytes base = packed(contents);
  const Bytes top = packed_on(contents, {base});
  base[300] ^= std::byte{1};
  const auto source = open_chain_of(top, {base});
  ASSERT_TRUE(source.has_value()) << source.error().message();
  Bytes buffer(4096);
  const auto done = fetch(**source, 0, buffer);
  ASSERT_FALSE(done.has_value());
  EXPECT_NE(done.error().context().find("which is in base"), std::string::npos) << done.error().context();
}

TEST(PackChain, is_at_most_so_deep) {
  Bytes contents = mixed_contents(3);
  std::vector<Bytes> packs{packed(contents)};
  while (packs.size() < pack::kMaxDepth) {
    contents[0] = static_cast<std::byte>(packs.size());
    packs.insert(packs.begin(), packed_on(contents, packs));
  }
  const auto source = open_chain_of(packs.front(), {packs.begin() + 1, packs.end()});
  ASSERT_TRUE(source.has_value()) << source.error().message();
  expect_contents(**source, contents);
  const auto chain = Chain::open(bytes_source(packs.front()), [&](const pack::Pack&, std::size_t depth) {
    return Result<std::unique_ptr<PageSource>>(bytes_source(packs.at(depth + 1)));
  });
  WriterOptions options = small_frames();
  options.base = &*chain;
  options.base_name = "b";
  const ScratchDirectory scratch;
  EXPECT_EQ(pack::write_pack(*bytes_source(contents), scratch.path("a"), options).error().code(),
            Errc::invalid_argument);
}

TEST(PackChain, finds_its_base_beside_it_or_where_it_is_told) {
  const ScratchDirectory scratch;
  const ScratchDirectory elsewhere;
  const Bytes contents = mixed_contents(20);
  const Bytes base = packed(contents);
  write_file(scratch.path("base.pack"), base);
  write_file(scratch.path("top.pack"), packed_on(contents, {base}));
  for (const std::string scheme : {"pack:", "pack+file:", "delay+pack+file:", "pack+delay+file:"}) {
    const auto source = open_source(scheme + scratch.path("top.pack"));
    ASSERT_TRUE(source.has_value()) << source.error().message();
    expect_contents(**source, contents);
  }
  write_file(elsewhere.path("base.pack"), base);
  std::remove(scratch.path("base.pack").c_str());
  const auto without = open_source("pack:" + scratch.path("top.pack"));
  ASSERT_FALSE(without.has_value());
  EXPECT_EQ(without.error().code(), Errc::not_found);
  EXPECT_NE(without.error().context().find("base=PATH"), std::string::npos);
  EXPECT_TRUE(open_source("pack:" + scratch.path("top.pack") + "?base=" + elsewhere.path("")).has_value());
  EXPECT_TRUE(
      open_source("pack+file:" + scratch.path("top.pack") + "?base=" + elsewhere.path("base.pack")).has_value());
}

TEST(PackSource, reads_nothing_for_zeroes_and_tells_where_they_are) {
  Bytes contents = mixed_contents(50);
  std::fill(contents.begin() + 40960, contents.begin() + 122880, std::byte{0});
  const auto source = open_packed(packed(contents));
  ASSERT_TRUE(source.has_value());
  const auto extents = (*source)->extents({{36864}, {131072 - 36864}});
  ASSERT_TRUE(extents.has_value());
  ASSERT_GE(extents->size(), 3U);
  EXPECT_EQ((*extents)[0], (Extent{.range = {{36864}, {4096}}}));
  EXPECT_EQ((*extents)[1], (Extent{.range = {{40960}, {81920}}, .kind = Extent::Kind::zero}));
  Bytes buffer(81920, std::byte{1});
  Answer answer;
  start_fetch(**source, answer, 40960, buffer);
  EXPECT_EQ(answer.count(), 1) << "answered at once";
  EXPECT_TRUE(std::ranges::all_of(buffer, [](std::byte byte) { return byte == std::byte{0}; }));
}

/// Reads of the bytes of a pack that are answered when the test says so, or failed when the source goes.
struct HeldReads {
  void answer(FetchTicket ticket) const {
    const ByteRange range = ticket.range();
    std::memcpy(ticket.buffer().data(), bytes.data() + range.start.value, range.length.value);
    std::move(ticket).complete(range.length);
  }
  std::vector<FetchTicket> take() {
    const std::lock_guard lock(mutex);
    return std::exchange(tickets, {});
  }

  Bytes bytes;
  std::atomic<bool> holding{false};
  std::mutex mutex;
  std::vector<FetchTicket> tickets;
};

class HeldReadsSource final : public PageSource {
 public:
  explicit HeldReadsSource(HeldReads& reads) : reads_(reads) { opened("held", {.size = {reads.bytes.size()}}); }
  ~HeldReadsSource() override {
    for (FetchTicket& ticket : reads_.take()) std::move(ticket).fail(Error(Errc::cancelled, "closed"));
  }

 private:
  void do_fetch(FetchTicket ticket) noexcept override {
    if (!reads_.holding) return reads_.answer(std::move(ticket));
    const std::lock_guard lock(reads_.mutex);
    reads_.tickets.push_back(std::move(ticket));
  }

  HeldReads& reads_;
};

Result<std::unique_ptr<PageSource>> open_held(HeldReads& reads, Bytes pack) {
  reads.bytes = std::move(pack);
  auto chain = UFFDA_TRY(Chain::open(std::make_unique<HeldReadsSource>(reads), nullptr));
  reads.holding = true;
  return pack::make_pack_source(std::move(chain), "pack:held");
}

TEST(PackSource, starts_64_reads_before_the_first_is_answered) {
  const Bytes contents = mixed_contents(400);
  HeldReads reads;
  auto source = open_held(reads, packed(contents));
  ASSERT_TRUE(source.has_value()) << source.error().message();
  std::vector<Bytes> buffers(64, Bytes(4096));
  std::vector<Answer> answers(64);
  for (std::size_t i = 0; i < 64; ++i) start_fetch(**source, answers[i], i * 5 * 4096, buffers[i]);
  std::vector<FetchTicket> tickets = reads.take();
  EXPECT_EQ(tickets.size(), 64U);
  std::ranges::reverse(tickets);
  for (FetchTicket& ticket : tickets) reads.answer(std::move(ticket));
  for (std::size_t i = 0; i < 64; ++i) {
    ASSERT_TRUE(answers[i].wait().has_value());
    EXPECT_TRUE(std::ranges::equal(buffers[i], std::span(contents).subspan(i * 5 * 4096, 4096)));
  }
}

TEST(PackSource, reads_frames_that_lie_side_by_side_in_one_go) {
  const Bytes contents = mixed_contents(100);
  HeldReads reads;
  auto source = open_held(reads, packed(contents));
  ASSERT_TRUE(source.has_value());
  Bytes buffer(2 * 4096);
  Answer answer;
  start_fetch(**source, answer, 0, buffer);
  std::vector<FetchTicket> tickets = reads.take();
  ASSERT_EQ(tickets.size(), 1U);
  reads.answer(std::move(tickets[0]));
  EXPECT_TRUE(answer.wait().has_value());
}

TEST(PackSource, cancels_what_a_silent_source_holds_when_it_goes) {
  HeldReads reads;
  auto source = open_held(reads, packed(mixed_contents(400)));
  ASSERT_TRUE(source.has_value());
  std::vector<Bytes> buffers(200, Bytes(4096));
  std::vector<Answer> answers(200);
  for (std::size_t i = 0; i < 200; ++i) start_fetch(**source, answers[i], i * 4096, buffers[i]);
  source->reset();
  for (std::size_t i = 0; i < 200; ++i) {
    ASSERT_EQ(answers[i].count(), 1);
    const auto done = answers[i].wait();
    EXPECT_TRUE(done.has_value() || done.error().code() == Errc::cancelled);
  }
}

}  // namespace
}  // namespace uffda::test
