// Writes to NBD servers: what was completed is read back, what was flushed is stored, and a server that was lost is
// told.
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <random>
#include <thread>
#include <vector>

#include "contract/source_contract.h"
#include "support/nbd_server.h"
#include "support/test_support.h"
#include "uffda/uffda.h"

namespace uffda::test {
namespace {

constexpr std::uint64_t kDiskBytes = std::uint64_t{4} << 20U;

class NbdWrites : public testing::Test {
 protected:
  void serve(std::vector<std::string> arguments, Nbdkit::Access access = Nbdkit::Access::writable) {
    auto server = Nbdkit::start(file_.beside("socket"), std::move(arguments), access);
    if (!server && server.error().code() == Errc::unsupported) GTEST_SKIP() << server.error().message();
    ASSERT_TRUE(server.has_value()) << server.error().message();
    server_.emplace(std::move(*server));
  }
  std::unique_ptr<PageSource> open() {
    auto source = open_source(server_->uri(), OpenFor::writing);
    EXPECT_TRUE(source.has_value()) << source.error().message();
    return source ? std::move(*source) : nullptr;
  }
  static Result<void> write(PageSource& source, std::uint64_t offset, std::span<const std::byte> bytes) {
    WriteAnswer written;
    source.write_back(WriteTicket(written, nullptr, {offset}, bytes, Deadline::after(std::chrono::seconds(30))));
    return written.wait();
  }
  [[nodiscard]] std::vector<std::byte> stored() const {
    std::vector<std::byte> bytes(kDiskBytes);
    std::ifstream file(file_.path(), std::ios::binary);
    file.read(reinterpret_cast<char*>(bytes.data()), kDiskBytes);
    return bytes;
  }

  PatternFile file_{kDiskBytes};
  std::optional<Nbdkit> server_;
};

TEST_F(NbdWrites, AreReadBackAlsoWhereTheServerSaidZero) {
  serve({"memory", "4M"});
  const auto source = open();
  ASSERT_NE(source, nullptr);
  ASSERT_TRUE(source->extents({.start = {0}, .length = {kDiskBytes}})) << "now it knows that all of it is zero";
  std::vector<std::byte> bytes(3 * kPageSize.value);
  Pattern::fill(bytes, 8192);
  const auto written = write(*source, 8192, bytes);
  ASSERT_TRUE(written) << written.error().message();
  const auto flushed = source->flush();
  EXPECT_TRUE(flushed) << flushed.error().message();
  const Buffer buffer(5 * kPageSize.value);
  ASSERT_TRUE(fetch(*source, 4096, buffer.bytes()));
  EXPECT_EQ(Pattern::mismatch(buffer.bytes().subspan(4096, bytes.size()), 8192), std::nullopt);
  EXPECT_EQ(buffer.bytes()[0], std::byte{0});
  EXPECT_EQ(buffer.bytes()[4 * 4096], std::byte{0});
}

TEST_F(NbdWrites, AreRefusedByAServerThatIsReadOnly) {
  serve({"memory", "4M"}, Nbdkit::Access::read_only);
  const auto source = open_source(server_->uri(), OpenFor::writing);
  ASSERT_FALSE(source);
  EXPECT_EQ(source.error().code(), Errc::permission_denied);
}

TEST_F(NbdWrites, TheFlushAfterALostServerFailsOnceAndThenStores) {
  serve({"file", file_.path()});
  const auto source = open();
  ASSERT_NE(source, nullptr);
  const std::vector<std::byte> bytes(kPageSize.value, std::byte{0x33});
  ASSERT_TRUE(write(*source, 0, bytes));
  ASSERT_TRUE(source->flush());
  ASSERT_TRUE(write(*source, 4096, bytes));
  server_->kill();
  ASSERT_TRUE(server_->restart());
  // A write that finds the connection lost is sent again.
  ASSERT_TRUE(write(*source, 8192, bytes));
  const auto doubted = source->flush();
  ASSERT_FALSE(doubted) << "the server may have lost what it had taken";
  EXPECT_EQ(doubted.error().code(), Errc::io);
  const auto flushed = source->flush();
  EXPECT_TRUE(flushed) << flushed.error().message();
  EXPECT_EQ(stored()[8192], std::byte{0x33});
}

TEST_F(NbdWrites, MappedMemoryComesToTheServerWhileItIsKilledAndComesBack) {
  if (const auto engine = Engine::create(); !engine) GTEST_SKIP() << engine.error().message();
  serve({"file", file_.path()});
  std::vector<std::byte> model = stored();
  {
    auto engine = Engine::create({.budget = {kDiskBytes / 8}});
    ASSERT_TRUE(engine);
    auto memory = engine->map(server_->uri(), {.access = Access::written_back});
    ASSERT_TRUE(memory) << memory.error().message();
    std::mt19937_64 random(3);
    for (unsigned round = 0; round < 6; ++round) {
      for (unsigned i = 0; i < 300; ++i) {
        const std::uint64_t at = random() % kDiskBytes;
        ASSERT_EQ(memory->bytes()[at], model[at]) << at;
        memory->writable_bytes()[at] = model[at] = static_cast<std::byte>(random());
      }
      if (round % 2 == 1) {
        server_->kill();
        ASSERT_TRUE(server_->restart());
      }
    }
    // Told once that the server was lost; then all of it is there.
    Result<void> synced = memory->sync(Deadline::after(std::chrono::seconds(30)));
    if (!synced) synced = memory->sync(Deadline::after(std::chrono::seconds(30)));
    ASSERT_TRUE(synced) << synced.error().message();
  }
  EXPECT_TRUE(stored() == model);
}

}  // namespace
}  // namespace uffda::test
