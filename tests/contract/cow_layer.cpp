// cow+: what is written over a source is in a file of its own, block by block, and stays there.
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <fstream>
#include <random>
#include <vector>

#include "contract/source_contract.h"
#include "sources/overlay_file.h"
#include "support/test_support.h"
#include "uffda/uffda.h"

namespace uffda::test {
namespace {

constexpr std::uint64_t kSize = (std::uint64_t{3} << 20U) + 1000;

class CowLayer : public testing::TestWithParam<const char*> {
 protected:
  [[nodiscard]] std::string uri() const {
    return std::string("cow+") + GetParam() + "file:" + base_.path() + "?overlay=" + overlay_;
  }
  [[nodiscard]] std::unique_ptr<PageSource> open(OpenFor what_for = OpenFor::writing) const {
    auto source = open_source(uri(), what_for);
    EXPECT_TRUE(source) << source.error().message();
    return source ? std::move(*source) : nullptr;
  }
  void write(PageSource& source, std::uint64_t offset, std::uint64_t length, std::mt19937_64& random) {
    for (std::uint64_t at = offset; at < offset + length; ++at) model_[at] = static_cast<std::byte>(random());
    WriteAnswer stored;
    source.write_back(WriteTicket(stored, nullptr, {offset}, std::span(model_).subspan(offset, length),
                                  Deadline::after(std::chrono::seconds(30))));
    const auto written = stored.wait();
    ASSERT_TRUE(written) << written.error().message();
  }
  void expect_model(PageSource& source) const {
    std::mt19937_64 random(5);
    for (std::uint64_t at = 0; at < kSize;) {
      const std::uint64_t length = std::min<std::uint64_t>(kSize - at, 1 + random() % 40'000);
      const Buffer buffer(length);
      const auto done = fetch(source, at, buffer.bytes());
      ASSERT_TRUE(done) << done.error().message();
      ASSERT_TRUE(std::ranges::equal(buffer.bytes(), std::span(model_).subspan(at, length))) << at;
      at += length;
    }
  }
  CowLayer() : model_(kSize) { Pattern::fill(model_, 0); }

  PatternFile base_{kSize};
  std::string overlay_ = base_.beside("overlay");
  std::vector<std::byte> model_;
};

TEST_P(CowLayer, ShowsWhatWasWrittenOverTheRestAndFindsItAgain) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 3; ++round) {
    const auto source = open();
    ASSERT_NE(source, nullptr);
    expect_model(*source);
    for (int i = 0; i < 40; ++i) {
      const std::uint64_t first = random() % (kSize / 4096);
      const std::uint64_t end = std::min(kSize, (first + 1 + random() % 20) * 4096);
      write(*source, first * 4096, end - first * 4096, random);
    }
    write(*source, kSize / 4096 * 4096, kSize % 4096, random);  // the last part of a block
    expect_model(*source);
    ASSERT_TRUE(source->flush());
  }
  const auto reading = open(OpenFor::reading);
  ASSERT_NE(reading, nullptr);
  expect_model(*reading);
  Pattern::fill(model_, 0);
  const auto base = open_source("file:" + base_.path());
  ASSERT_TRUE(base);
  expect_model(**base);
}

/// As if the machine had been started anew since: the bytes of an overlay count for nothing.
void start_anew(const std::string& path) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  std::array<std::byte, sizeof(sources::OverlayHeader)> bytes{};
  file.read(reinterpret_cast<char*>(bytes.data()), bytes.size());
  sources::OverlayHeader header = *sources::parse_overlay_header(bytes);
  header.boot = ~header.boot;
  sources::seal(header);
  file.seekp(0).write(reinterpret_cast<const char*>(&header), sizeof header);
}

TEST_P(CowLayer, WhatWasNotFlushedIsThereUntilTheMachineIsStartedAnew) {
  std::mt19937_64 random(2);
  {
    const auto source = open();
    ASSERT_NE(source, nullptr);
    write(*source, 0, 8192, random);
    ASSERT_TRUE(source->flush());
    write(*source, 8192, 4096, random);
  }
  for (const OpenFor what_for : {OpenFor::reading, OpenFor::writing}) {
    const auto killed = open(what_for);  // one that was killed does not flush at its end, either
    ASSERT_NE(killed, nullptr);
    expect_model(*killed);
  }
  start_anew(overlay_);
  Pattern::fill(std::span(model_).subspan(8192, 4096), 8192);
  const auto source = open();
  ASSERT_NE(source, nullptr);
  expect_model(*source);
  write(*source, 16384, 4096, random);
  ASSERT_TRUE(source->flush());
}

TEST_P(CowLayer, IsForOneWriterAndForTheSourceThatItWasMadeOver) {
  {
    const auto source = open();
    ASSERT_NE(source, nullptr);
    const auto second = open_source(uri(), OpenFor::writing);
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code(), Errc::busy);
  }
  base_.resize(kSize + 4096);
  const auto other = open_source(uri(), OpenFor::writing);
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().code(), Errc::invalid_argument);
  std::fstream(overlay_, std::ios::in | std::ios::out | std::ios::binary).seekp(20).put('x');
  const auto damaged = open_source(uri(), OpenFor::writing);
  ASSERT_FALSE(damaged);
  EXPECT_EQ(damaged.error().code(), Errc::protocol);
  EXPECT_FALSE(open_source(std::string("cow+") + GetParam() + "file:" + base_.path(), OpenFor::writing));
  ::unlink(overlay_.c_str());
  const auto missing = open_source(uri());
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code(), Errc::not_found);
}

TEST_P(CowLayer, MappedMemoryIsWrittenBackIntoIt) {
  if (const auto engine = Engine::create(); !engine) GTEST_SKIP() << engine.error().message();
  std::mt19937_64 random(3);
  for (int round = 0; round < 2; ++round) {
    auto engine = Engine::create({.budget = {kSize / 8}});
    ASSERT_TRUE(engine);
    auto memory = engine->map(uri(), {.access = Access::written_back});
    ASSERT_TRUE(memory) << memory.error().message();
    for (int i = 0; i < 3000; ++i) {
      const std::uint64_t at = random() % kSize;
      ASSERT_EQ(memory->bytes()[at], model_[at]) << at;
      memory->writable_bytes()[at] = model_[at] = static_cast<std::byte>(random());
    }
  }
  const auto source = open(OpenFor::reading);
  ASSERT_NE(source, nullptr);
  expect_model(*source);
}

INSTANTIATE_TEST_SUITE_P(Over, CowLayer, testing::Values("", "delay+"), [](const auto& over) {
  return std::string(over.param).empty() ? std::string("file") : std::string("delay");
});

TEST(OverlayHeader, IsWhatItWasMadeAsOrRefused) {
  const sources::OverlayHeader header = sources::make_overlay_header({kSize}, "a version");
  std::array<std::byte, sizeof header> bytes{};
  std::memcpy(bytes.data(), &header, sizeof header);
  const auto parsed = sources::parse_overlay_header(bytes);
  ASSERT_TRUE(parsed);
  EXPECT_EQ(*parsed, header);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] ^= std::byte{1};
    EXPECT_FALSE(sources::parse_overlay_header(bytes)) << i;
    bytes[i] ^= std::byte{1};
  }
  EXPECT_FALSE(sources::parse_overlay_header(std::span(bytes).first(63)));
}

}  // namespace
}  // namespace uffda::test
