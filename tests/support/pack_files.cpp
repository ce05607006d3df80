#include "support/pack_files.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "sources/pack/pack_source.h"

namespace uffda::test {
namespace {

class BytesSource final : public PageSource {
 public:
  BytesSource(Bytes bytes, std::string name) : bytes_(std::move(bytes)) {
    opened(std::move(name), {.size = {bytes_.size()}, .immediate = true});
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

  Bytes bytes_;
};

std::uint64_t load(std::span<const std::byte> bytes, std::size_t at) {
  std::uint64_t value = 0;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

}  // namespace

std::unique_ptr<PageSource> bytes_source(Bytes bytes, std::string name) {
  return std::make_unique<BytesSource>(std::move(bytes), std::move(name));
}

ScratchDirectory::ScratchDirectory() {
  std::string name = std::filesystem::temp_directory_path() / "uffda-pack-XXXXXX";
  if (::mkdtemp(name.data()) == nullptr) std::abort();
  directory_ = name;
}

ScratchDirectory::~ScratchDirectory() { std::filesystem::remove_all(directory_); }

std::vector<std::string> ScratchDirectory::names() const {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory_)) names.push_back(entry.path().filename());
  std::ranges::sort(names);
  return names;
}

Bytes read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

void write_file(const std::string& path, std::span<const std::byte> bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

Bytes mixed_contents(std::size_t frames, unsigned seed) {
  constexpr std::size_t kFrame = 4096;
  std::mt19937_64 random(seed);
  Bytes bytes(frames * kFrame);
  for (std::size_t i = 0; i < frames; ++i) {
    const auto frame = std::span(bytes).subspan(i * kFrame, kFrame);
    if (i % 5 == 0) std::ranges::generate(frame, [&] { return static_cast<std::byte>(random() & 3U); });
    if (i % 5 == 1) std::ranges::generate(frame, [&] { return static_cast<std::byte>(random()); });
    if (i % 5 == 3 && i > 5)
      std::ranges::copy(std::span(bytes).subspan((i - 3 - i / 10 * 5) * kFrame, kFrame), frame.begin());
    if (i % 5 == 4) std::ranges::fill(frame, static_cast<std::byte>(random() | 1U));
  }
  bytes.resize(bytes.size() - 1000);
  return bytes;
}

pack::WriterOptions small_frames() {
  return {.frame_size = 4_KiB, .threads = 2, .metadata = {}, .base_name = {}, .progress = {}};
}

Bytes packed(const Bytes& contents, const pack::WriterOptions& options) {
  const ScratchDirectory scratch;
  const auto source = bytes_source(contents);
  const auto made = pack::write_pack(*source, scratch.path("made"), options);
  if (!made) std::abort();
  return read_file(scratch.path("made"));
}

bool mend_checksums(std::span<std::byte> pack) {
  if (pack.size() < pack::kHeaderBytes) return false;
  for (const std::size_t at : {32U, 64U, 96U, 128U}) {
    const std::uint64_t start = load(pack, at);
    const std::uint64_t length = load(pack, at + 8);
    if (start > pack.size() || length > pack.size() - start) return false;
    const pack::Checksum sum = pack::checksum_of(pack.subspan(start, length));
    std::memcpy(pack.data() + at + 16, sum.bytes.data(), sum.bytes.size());
  }
  const pack::Checksum sum = pack::checksum_of(pack.first(pack::kHeaderBytes - 16));
  std::memcpy(pack.data() + pack::kHeaderBytes - 16, sum.bytes.data(), sum.bytes.size());
  return true;
}

Result<std::unique_ptr<PageSource>> open_packed(Bytes pack) {
  const auto no_base = [](const pack::Pack&, std::size_t) -> Result<std::unique_ptr<PageSource>> {
    return fail(Errc::not_found, "no base here");
  };
  auto chain = UFFDA_TRY(pack::Chain::open(bytes_source(std::move(pack)), no_base));
  return pack::make_pack_source(std::move(chain), "pack:test");
}

}  // namespace uffda::test
