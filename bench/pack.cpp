// Packs beside what they are made of: packing beside the zstd command on all CPUs, the ratio beside zstd in blocks of
// the same size, and reading from a pack beside reading the raw file, both cold and from a source of 500 MB/s.
//
// pack [--data FILE] [--dir DIR] [--quick] [--json FILE]: FILE is what is packed; by default files of /usr in a row.
#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <unordered_set>
#include <vector>

#include "common/bench.h"
#include "common/uffda_memory.h"
#include "sources/pack/pack_source.h"
#include "sources/pack/writer.h"

extern char** environ;

namespace {

using namespace bench;
using uffda::HandlerPolicy;
namespace pack = uffda::pack;

constexpr std::size_t kFrame = 65536;
constexpr int kLevel = 3;

std::vector<char> read_whole(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// Files of /usr, one behind the other, with a run of zeroes after each MiB or so, as a disk has them.
void make_data(const std::string& path, std::size_t bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  std::vector<std::string> names;
  for (const char* top : {"/usr/lib/x86_64-linux-gnu", "/usr/share", "/usr/bin"}) {
    std::error_code ignored;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(
             top, std::filesystem::directory_options::skip_permission_denied, ignored)) {
      if (entry.is_regular_file(ignored) && !entry.is_symlink(ignored)) names.push_back(entry.path());
    }
  }
  std::ranges::sort(names);
  const std::vector<char> zeroes(262144);
  std::size_t done = 0;
  for (std::size_t at = 0; done < bytes && !names.empty(); ++at) {
    const std::vector<char> contents = read_whole(names[at % names.size()]);
    out.write(contents.data(), static_cast<std::streamsize>(contents.size()));
    if (at % 16 == 0) out.write(zeroes.data(), static_cast<std::streamsize>(zeroes.size()));
    done = static_cast<std::size_t>(out.tellp());
  }
}

void drop(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  check(fd >= 0, path);
  check(::fdatasync(fd) == 0 && ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0, "dropping " + path);
  ::close(fd);
}

/// Counts the bytes that are asked of the source behind it.
class Counting final : public uffda::PageSource {
 public:
  Counting(std::unique_ptr<uffda::PageSource> inner, std::atomic<std::uint64_t>& bytes)
      : inner_(std::move(inner)), bytes_(bytes) {
    uffda::SourceProperties properties = inner_->properties();
    properties.immediate = false;
    opened("counting", properties);
  }

 private:
  void do_fetch(uffda::FetchTicket ticket) noexcept override {
    bytes_ += ticket.range().length.value;
    inner_->fetch(std::move(ticket));
  }
  std::unique_ptr<uffda::PageSource> inner_;
  std::atomic<std::uint64_t>& bytes_;
};

class PackBench {
 public:
  PackBench(Report& report, std::string data, std::string packed)
      : report_(report), data_(std::move(data)), packed_(std::move(packed)), rounds_(report.quick() ? 3 : 7) {}

  void packing();
  void ratio();
  void cold_bytes();
  void narrow_line();

 private:
  double pack_mbs();
  double zstd_mbs();
  double zstd_in_memory_mbs(const std::vector<char>& contents);
  double scan_mbs(const std::string& uri);

  Report& report_;
  std::string data_;
  std::string packed_;
  std::size_t rounds_;
};

double PackBench::pack_mbs() {
  const std::int64_t start = now_ns();
  const auto input = must(uffda::open_source("file:" + data_));
  const auto summary =
      must(pack::write_pack(*input, packed_, {.level = kLevel, .metadata = {}, .base_name = {}, .progress = {}}));
  return static_cast<double>(summary.size.value) / static_cast<double>(now_ns() - start) * 1e3;
}

/// The command, from file to file as we do it. (We also have what we wrote reach the disk.)
double PackBench::zstd_mbs() {
  std::vector<std::string> words{"zstd", "-q", fmt::format("-{}", kLevel), "-T0", "-f", data_, "-o", packed_ + ".zst"};
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  pid_t child = -1;
  int status = -1;
  const std::int64_t start = now_ns();
  if (::posix_spawnp(&child, "zstd", nullptr, nullptr, arguments.data(), environ) != 0) die("zstd is not installed");
  if (::waitpid(child, &status, 0) != child || status != 0) die("zstd failed");
  const double mbs =
      static_cast<double>(std::filesystem::file_size(data_)) / static_cast<double>(now_ns() - start) * 1e3;
  std::filesystem::remove(packed_ + ".zst");
  return mbs;
}

/// Its work alone: in memory, as one stream.
double PackBench::zstd_in_memory_mbs(const std::vector<char>& contents) {
  const std::unique_ptr<ZSTD_CCtx, std::size_t (*)(ZSTD_CCtx*)> context(ZSTD_createCCtx(), ZSTD_freeCCtx);
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_compressionLevel, kLevel);
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_nbWorkers, static_cast<int>(usable_cpus().size()));
  std::vector<char> out(ZSTD_compressBound(contents.size()));
  const std::int64_t start = now_ns();
  const std::size_t size = ZSTD_compress2(context.get(), out.data(), out.size(), contents.data(), contents.size());
  if (ZSTD_isError(size) != 0) die(ZSTD_getErrorName(size));
  return static_cast<double>(contents.size()) / static_cast<double>(now_ns() - start) * 1e3;
}

void PackBench::packing() {
  Report::progress("packing");
  std::vector<double> ours;
  std::vector<double> command;
  std::vector<double> memory;
  const std::vector<char> contents = read_whole(data_);
  for (std::size_t round = 0; round < rounds_; ++round) {
    ours.push_back(pack_mbs());
    command.push_back(zstd_mbs());
    memory.push_back(zstd_in_memory_mbs(contents));
  }
  report_.compare_rounds({.name = "packing",
                          .unit = "MB/s",
                          .peer_name = "zstd -3 -T0, from file to file",
                          .target = Target{.bound = Bound::at_least, .ratio = 0.95}},
                         ours, command);
  report_.compare_rounds({.name = "packing",
                          .unit = "MB/s",
                          .peer_name = "zstd -3 on all CPUs, in memory, one stream",
                          .target = std::nullopt},
                         ours, memory);
}

void PackBench::ratio() {
  Report::progress("ratio");
  const std::vector<char> contents = read_whole(data_);
  const std::unique_ptr<ZSTD_CCtx, std::size_t (*)(ZSTD_CCtx*)> context(ZSTD_createCCtx(), ZSTD_freeCCtx);
  std::vector<char> out(ZSTD_compressBound(kFrame));
  std::unordered_set<std::string_view> seen;
  std::uint64_t bytes = 0;
  for (std::size_t at = 0; at < contents.size(); at += kFrame) {
    const std::string_view block(contents.data() + at, std::min(kFrame, contents.size() - at));
    if (block.find_first_not_of('\0') == std::string_view::npos || !seen.insert(block).second) continue;
    bytes += ZSTD_compressCCtx(context.get(), out.data(), out.size(), block.data(), block.size(), kLevel);
  }
  report_.compare({.name = "size of the pack",
                   .unit = "bytes",
                   .uffda = static_cast<double>(std::filesystem::file_size(packed_)),
                   .peer_name = "zstd -b3 -B65536 of what is neither zero nor a duplicate",
                   .peer = static_cast<double>(bytes),
                   .target = Target{.bound = Bound::at_most, .ratio = 1.03}});
}

/// A few percent of the frames are touched, here and there: what is read is what they take in the pack.
void PackBench::cold_bytes() {
  Report::progress("bytes of a cold run");
  drop(packed_);
  std::atomic<std::uint64_t> read{0};
  auto counting = std::make_unique<Counting>(must(uffda::open_source("file:" + packed_)), read);
  pack::Chain chain = must(pack::Chain::open(std::move(counting), nullptr));
  const pack::Index& index = chain.index();
  std::vector<std::uint32_t> frames = shuffled(index.frames());
  frames.resize(std::max<std::size_t>(1, frames.size() / 20));
  std::uint64_t share = 0;
  for (const std::uint32_t frame : frames) share += chain.locate(frame).frame.stored;
  const std::uint64_t frame_size = index.frame_size().value;
  auto source = must(pack::make_pack_source(std::move(chain), "pack"));
  const UffdaMemory memory = UffdaMemory::of(std::move(source), HandlerPolicy::per_cpu);
  read = 0;
  for (const std::uint32_t frame : frames) {
    for (std::size_t at = frame * frame_size; at < std::min((frame + 1) * frame_size, memory.memory.bytes().size());
         at += kPage) {
      [[maybe_unused]] const volatile std::byte touched =
          *const_cast<const volatile std::byte*>(memory.memory.bytes().data() + at);
    }
  }
  report_.compare({.name = "bytes read, 5 % of the frames touched at random",
                   .unit = "bytes",
                   .uffda = static_cast<double>(read),
                   .peer_name = "what these frames take in the pack",
                   .peer = static_cast<double>(share),
                   .target = Target{.bound = Bound::at_most, .ratio = 1}});
}

double PackBench::scan_mbs(const std::string& uri) {
  const UffdaMemory memory = UffdaMemory::of(must(uffda::open_source(uri)), HandlerPolicy::per_cpu);
  const auto bytes = memory.memory.bytes();
  const std::int64_t start = now_ns();
  for (std::size_t at = 0; at < bytes.size(); at += kPage) {
    [[maybe_unused]] const volatile std::byte touched = *const_cast<const volatile std::byte*>(bytes.data() + at);
  }
  return static_cast<double>(bytes.size()) / static_cast<double>(now_ns() - start) * 1e3;
}

void PackBench::narrow_line() {
  Report::progress("scans from 500 MB/s");
  std::vector<double> ours;
  std::vector<double> peer;
  for (std::size_t round = 0; round < rounds_; ++round) {
    drop(packed_);
    ours.push_back(scan_mbs("pack+delay+file:" + packed_ + "?bandwidth=500000000"));
    drop(data_);
    peer.push_back(scan_mbs("delay+file:" + data_ + "?bandwidth=500000000"));
  }
  report_.compare_rounds({.name = "cold scan from a source of 500 MB/s",
                          .unit = "MB/s",
                          .peer_name = "the raw file",
                          .target = Target{.bound = Bound::at_least, .ratio = 1}},
                         ours, peer);
}

}  // namespace

int main(int argc, char** argv) {
  Report report("pack", argc, argv);
  const std::string directory = report.option("dir", ".");
  std::string data = report.option("data", "");
  if (data.empty()) {
    data = directory + "/pack.data";
    make_data(data, (report.quick() ? std::size_t{64} : std::size_t{512}) << 20U);
  }
  PackBench bench(report, data, directory + "/pack.packed");
  bench.packing();
  bench.ratio();
  bench.cold_bytes();
  bench.narrow_line();
  report.finish();
  return 0;
}
