// Packs from anywhere: opening and reading one never crashes, never allocates without end, and what is read has the
// checksum that the index names. The first byte of the input says whether the checksums of header and sections are made
// right first, so that what lies behind them is reached.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "sources/pack/chain.h"

namespace {

using namespace uffda;

void require(bool holds) {
  if (!holds) std::abort();
}

class InputSource final : public PageSource {
 public:
  explicit InputSource(std::span<const std::byte> bytes) : bytes_(bytes) {
    opened("input", {.size = {bytes.size()}, .immediate = true});
  }

 private:
  void do_fetch(FetchTicket ticket) noexcept override {
    const ByteCount length = ticket.range().length;
    (void)do_fetch_now(ticket.range().start, ticket.buffer().first(length.value));
    std::move(ticket).complete(length);
  }
  Result<void> do_fetch_now(ByteOffset offset, std::span<std::byte> buffer) noexcept override {
    std::memcpy(buffer.data(), bytes_.data() + offset.value, buffer.size());
    return {};
  }

  std::span<const std::byte> bytes_;
};

std::uint64_t load(std::span<const std::byte> bytes, std::size_t at) {
  std::uint64_t value = 0;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

void store(std::span<std::byte> bytes, std::size_t at, const pack::Checksum& sum) {
  std::memcpy(bytes.data() + at, sum.bytes.data(), sum.bytes.size());
}

void mend(std::span<std::byte> bytes) {
  if (bytes.size() < pack::kHeaderBytes) return;
  const std::uint64_t size = bytes.size();
  std::memcpy(bytes.data() + 16, &size, sizeof size);
  for (const std::size_t at : {32U, 64U, 96U, 128U}) {
    const std::uint64_t start = load(bytes, at);
    const std::uint64_t length = load(bytes, at + 8);
    if (start > size || length > size - start) continue;
    store(bytes, at + 16, pack::checksum_of(bytes.subspan(start, length)));
  }
  store(bytes, pack::kHeaderBytes - 16, pack::checksum_of(bytes.first(pack::kHeaderBytes - 16)));
}

void read_frames(const pack::Chain& chain) {
  constexpr std::uint64_t kMost = 64;
  auto reader = pack::FrameReader::create(chain);
  require(reader.has_value());
  const pack::Index& index = chain.index();
  std::vector<std::byte> contents(index.frame_size().value);
  for (std::uint64_t number = 0; number < index.frames() && number < kMost; ++number) {
    const auto frame = std::span(contents).first(index.range(number).length.value);
    const pack::Frame wanted = index.frame(number);
    const auto read = reader->read(number, frame);
    require(read || !read.error().context().empty());
    require(!read || wanted.kind == pack::FrameKind::zero || pack::checksum_of(frame) == wanted.checksum);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const auto input = std::as_bytes(std::span(data, size));
  std::vector<std::byte> bytes(input.begin() + 1, input.end());
  if ((data[0] & 1U) != 0) mend(bytes);
  // A pack may name any base; it gets itself, which is refused, or an empty answer.
  const auto open_base = [&](const pack::Pack&, std::size_t depth) -> Result<std::unique_ptr<PageSource>> {
    if (depth != 0) return fail(Errc::not_found, "no base");
    return std::make_unique<InputSource>(bytes);
  };
  const auto chain = pack::Chain::open(std::make_unique<InputSource>(bytes), open_base);
  require(chain || !chain.error().context().empty());
  if (chain) read_frames(*chain);
  return 0;
}
