// Making packs: the same bytes each time, nothing left of what failed, and the working set of one that exists.
#include <gtest/gtest.h>

#include <atomic>
#include <functional>

#include "sources/pack/open.h"
#include "sources/pack/tools.h"
#include "support/pack_files.h"
#include "support/test_support.h"

namespace uffda::pack {
namespace {

using test::Bytes;
using test::mixed_contents;
using test::ScratchDirectory;

WriterOptions with_threads(unsigned threads) {
  WriterOptions options = test::small_frames();
  options.threads = threads;
  return options;
}

TEST(PackWriter, writes_the_same_bytes_with_any_number_of_threads) {
  const Bytes contents = mixed_contents(7000);  // several rounds
  const Bytes one = test::packed(contents, with_threads(1));
  EXPECT_EQ(test::packed(contents, with_threads(2)), one);
  EXPECT_EQ(test::packed(contents, with_threads(7)), one);
}

TEST(PackWriter, reads_no_zeroes_that_the_source_knows) {
  class Hole final : public PageSource {
   public:
    Hole() { opened("hole", {.size = {1000000}}); }

   private:
    void do_fetch(FetchTicket ticket) noexcept override {
      if (ticket.range().start.value >= 102400 && ticket.range().end().value <= 409600)
        return std::move(ticket).fail(Error(Errc::io, "a read of the hole"));
      test::answer(std::move(ticket));
    }
    Result<std::vector<Extent>> do_extents(ByteRange range) override {
      // The hole, 102400 to 409600, is told in two parts; one extent at a time.
      for (const std::uint64_t edge : {102400U, 204800U, 409600U, 1000000U}) {
        if (range.start.value >= edge) continue;
        const bool zero = edge == 204800 || edge == 409600;
        return std::vector{Extent{.range = {range.start, {edge - range.start.value}},
                                  .kind = zero ? Extent::Kind::zero : Extent::Kind::data}};
      }
      return std::vector<Extent>{};
    }
  };
  const ScratchDirectory scratch;
  Hole hole;
  const auto summary = write_pack(hole, scratch.path("pack"), test::small_frames());
  ASSERT_TRUE(summary.has_value()) << summary.error().message();
  EXPECT_EQ(summary->of(FrameKind::zero).frames, 75U);
}

TEST(PackWriter, leaves_nothing_and_the_old_file_when_the_source_fails) {
  const ScratchDirectory scratch;
  const Bytes old(10, std::byte{7});
  test::write_file(scratch.path("pack"), old);
  test::HeldSource failing({10000000}, [](FetchTicket ticket) {
    if (ticket.range().start.value > 5000000) return std::move(ticket).fail(Error(Errc::io, "no such bytes"));
    test::answer(std::move(ticket));
  });
  const auto made = write_pack(failing, scratch.path("pack"), test::small_frames());
  ASSERT_FALSE(made.has_value());
  EXPECT_NE(made.error().context().find("no such bytes"), std::string::npos);
  EXPECT_EQ(scratch.names(), std::vector<std::string>{"pack"});
  EXPECT_EQ(test::read_file(scratch.path("pack")), old);
}

TEST(PackWriter, stops_when_it_is_told_to_and_leaves_nothing) {
  const ScratchDirectory scratch;
  std::atomic<bool> cancel{false};
  test::HeldSource source({100000000}, [&](FetchTicket ticket) {
    if (ticket.range().start.value > 1000000) cancel = true;
    test::answer(std::move(ticket));
  });
  WriterOptions options = test::small_frames();
  options.cancel = &cancel;
  EXPECT_EQ(write_pack(source, scratch.path("pack"), options).error().code(), Errc::cancelled);
  EXPECT_TRUE(scratch.names().empty());
}

TEST(PackWriter, refuses_options_that_make_no_pack) {
  const ScratchDirectory scratch;
  const auto source = test::bytes_source(mixed_contents(3));
  const auto refused = [&](const std::function<void(WriterOptions&)>& change) {
    WriterOptions options = test::small_frames();
    change(options);
    const auto made = write_pack(*source, scratch.path("pack"), options);
    return !made && made.error().code() == Errc::invalid_argument;
  };
  EXPECT_TRUE(refused([](WriterOptions& options) { options.frame_size = {5000}; }));
  EXPECT_TRUE(refused([](WriterOptions& options) { options.frame_size = 2_KiB; }));
  EXPECT_TRUE(refused([](WriterOptions& options) { options.frame_size = 2_MiB; }));
  EXPECT_TRUE(refused([](WriterOptions& options) { options.level = 0; }));
  EXPECT_TRUE(refused([](WriterOptions& options) { options.level = 23; }));
  EXPECT_TRUE(refused([](WriterOptions& options) { options.metadata["a b"] = "c"; }));
  test::HeldSource huge({std::uint64_t{1} << 40U}, [](FetchTicket) {});
  EXPECT_EQ(write_pack(huge, scratch.path("pack"), test::small_frames()).error().code(), Errc::invalid_argument);
  EXPECT_EQ(write_pack(*source, scratch.path(""), test::small_frames()).error().code(), Errc::invalid_argument);
  EXPECT_EQ(write_pack(*source, scratch.path("no/where"), test::small_frames()).error().code(), Errc::not_found);
  EXPECT_TRUE(scratch.names().empty());
}

TEST(WorkingSet, takes_the_place_of_another_and_leaves_the_rest_as_it_is) {
  const ScratchDirectory scratch;
  const Bytes contents = mixed_contents(30);
  const std::string path = scratch.path("pack");
  WriterOptions options = test::small_frames();
  options.metadata["host"] = "db1";
  ASSERT_TRUE(write_pack(*test::bytes_source(contents), path, options).has_value());
  const Checksum identity = open_top(path)->index.identity();
  EXPECT_TRUE(read_working_set(*open_top(path))->empty());
  for (const std::size_t size : {1000U, 7U, 0U, 100000U}) {
    const Bytes working_set = mixed_contents(40, static_cast<unsigned>(size));
    const auto bytes = std::span(working_set).first(size);
    const auto replaced = replace_working_set(path, bytes);
    ASSERT_TRUE(replaced.has_value()) << replaced.error().message();
    const auto pack = open_top(path);
    ASSERT_TRUE(pack.has_value()) << pack.error().message();
    EXPECT_EQ(*read_working_set(*pack), Bytes(bytes.begin(), bytes.end()));
    EXPECT_EQ(pack->index.identity(), identity);
    EXPECT_EQ(pack->metadata, options.metadata);
    const auto source = open_source("delay+pack:" + path);
    ASSERT_TRUE(source.has_value()) << source.error().message();
    EXPECT_EQ((*source)->working_set().value(), Bytes(bytes.begin(), bytes.end())) << "through a layer";
  }
  const auto chain = open_chain(path);
  ASSERT_TRUE(chain.has_value());
  EXPECT_TRUE(verify(*chain, {})->empty());
  EXPECT_EQ(scratch.names(), std::vector<std::string>{"pack"});

  Bytes damaged = test::read_file(path);
  damaged.back() ^= std::byte{1};
  test::write_file(path, damaged);
  const auto opened = open_chain(path);
  ASSERT_TRUE(opened.has_value()) << "the contents are fine";
  EXPECT_EQ(read_working_set(opened->packs().front()).error().code(), Errc::io);
  EXPECT_EQ(verify(*opened, {})->size(), 1U);
}

TEST(PackTools, unpack_what_was_packed_and_verify_names_every_damaged_frame) {
  const ScratchDirectory scratch;
  const Bytes contents = mixed_contents(60);
  Bytes pack = test::packed(contents);
  test::write_file(scratch.path("pack"), pack);
  ASSERT_TRUE(unpack(*open_chain(scratch.path("pack")), scratch.path("out"), {}).has_value());
  EXPECT_EQ(test::read_file(scratch.path("out")), contents);

  const auto place = [&](std::uint64_t frame) { return open_top(scratch.path("pack"))->index.frame(frame).place; };
  pack[place(11)] ^= std::byte{1};
  pack[place(31) + 100] ^= std::byte{1};
  test::write_file(scratch.path("pack"), pack);
  const auto chain = open_chain(scratch.path("pack"));
  const auto damages = verify(*chain, {});
  ASSERT_TRUE(damages.has_value());
  ASSERT_EQ(damages->size(), 2U);
  EXPECT_NE((*damages)[0].context().find("frame 11,"), std::string::npos);
  EXPECT_NE((*damages)[1].context().find("frame 31,"), std::string::npos);
  EXPECT_FALSE(unpack(*chain, scratch.path("new"), {}).has_value());
  EXPECT_EQ(scratch.names(), (std::vector<std::string>{"out", "pack"}));
}

}  // namespace
}  // namespace uffda::pack
