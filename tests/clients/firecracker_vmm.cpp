// The part of Firecracker that restores memory, without a guest: maps it, hands its userfaultfd over in the words of a
// version, and then reads, writes and drops pages at random, and checks every one of them.
//
//   firecracker_vmm SOCKET FILE [version=1.1|1.7|1.12|fork] [memory=anon|memfd] [huge] [regions=N] [threads=N]
//                   [steps=N] [drop=PERCENT] [seed=N] [race] [wait] [half] [crowded]
//
// FILE is what the server serves. `race`: others touch what is dropped all the while. `wait`: says "started", and goes
// on when a line comes. `half`: the same with "half" after half of the steps, when what is dropped has been seen to be
// zeroes, behind "memory START-END" for each region. `crowded`: has as many mappings as the kernel allows, drops one
// page, and touches it. Exit status 0: every byte is right; 1: some are not; 2: usage, or something failed.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kHuge = std::size_t{2} << 20U;
constexpr unsigned kMostSeconds = 240;  // a hang detector

struct Options {
  std::string socket, file, version = "1.12", memory = "anon";
  bool huge = false, race = false, wait = false, half = false, crowded = false;
  std::size_t regions = 1, threads = 2, steps = 20'000, drop = 10, seed = 1;
  [[nodiscard]] std::size_t page() const { return huge ? kHuge : kPage; }
};

[[noreturn]] void die(const char* what) {
  std::perror(what);
  std::_Exit(2);
}

bool option(const std::string& text, const std::string& name, std::string& value) {
  if (!text.starts_with(name + "=")) return false;
  value = text.substr(name.size() + 1);
  return true;
}

Options parse(int argc, char** argv) {
  Options options;
  if (argc < 3) die("firecracker_vmm SOCKET FILE [options]");
  options.socket = argv[1];
  options.file = argv[2];
  for (int i = 3; i < argc; ++i) {
    const std::string text = argv[i];
    std::string value;
    if (option(text, "version", options.version) || option(text, "memory", options.memory)) continue;
    if (option(text, "regions", value))
      options.regions = std::stoul(value);
    else if (option(text, "threads", value))
      options.threads = std::stoul(value);
    else if (option(text, "steps", value))
      options.steps = std::stoul(value);
    else if (option(text, "drop", value))
      options.drop = std::stoul(value);
    else if (option(text, "seed", value))
      options.seed = std::stoul(value);
    else if (text == "huge")
      options.huge = true;
    else if (text == "race")
      options.race = true;
    else if (text == "wait")
      options.wait = true;
    else if (text == "half")
      options.half = true;
    else if (text == "crowded")
      options.crowded = true;
    else
      die(("unknown: " + text).c_str());
  }
  return options;
}

/// What FILE has, read only.
struct Expected {
  const std::byte* bytes = nullptr;
  std::size_t size = 0;
};

Expected map_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat status{};
  if (fd < 0 || ::fstat(fd, &status) != 0) die(path.c_str());
  const auto size = static_cast<std::size_t>(status.st_size);
  void* const memory = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  if (memory == MAP_FAILED) die("mmap of the file");
  return {static_cast<const std::byte*>(memory), size};
}

struct Region {
  std::byte* start;
  std::size_t size;
  std::size_t offset;
};

Region map_region(const Options& options, std::size_t size, std::size_t offset) {
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  int fd = -1;
  if (options.memory == "memfd") {
    fd = ::memfd_create("guest", MFD_CLOEXEC | (options.huge ? MFD_HUGETLB : 0U));
    if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(size)) != 0) die("memfd");
    flags = MAP_SHARED | MAP_NORESERVE;
  } else if (options.huge) {
    flags |= MAP_HUGETLB;
  }
  void* const memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (memory == MAP_FAILED) die("mmap of guest memory");
  return {static_cast<std::byte*>(memory), size, offset};
}

int open_userfault(const std::vector<Region>& regions) {
  const auto fd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
  uffdio_api api{.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE, .ioctls = 0};
  if (fd < 0 || ::ioctl(fd, UFFDIO_API, &api) != 0) die("userfaultfd");
  for (const Region& region : regions) {
    uffdio_register request{};
    request.range = {.start = reinterpret_cast<std::uintptr_t>(region.start), .len = region.size};
    request.mode = UFFDIO_REGISTER_MODE_MISSING;
    if (::ioctl(fd, UFFDIO_REGISTER, &request) != 0) die("UFFDIO_REGISTER");
  }
  return fd;
}

/// The body of a version's message.
std::string words_of(const Options& options, const std::vector<Region>& regions) {
  std::string text = "[";
  for (const Region& region : regions) {
    if (text.size() > 1) text += ",";
    text += "{\"base_host_virt_addr\":" + std::to_string(reinterpret_cast<std::uintptr_t>(region.start)) +
            ",\"size\":" + std::to_string(region.size) + ",\"offset\":" + std::to_string(region.offset);
    const std::string page = std::to_string(options.page());
    if (options.version != "1.1") text += ",\"page_size_kib\":" + page;
    if (options.version == "1.12" || options.version == "fork") text += ",\"page_size\":" + page;
    if (options.version == "fork")
      text += ",\"gpa_start\":0,\"is_guest_memfd\":false,\"more\":[1,{\"a\":\"]\"}],\"note\":\"" +
              std::string(40'000 / regions.size(), 'x') + "\"";
    text += "}";
  }
  return text + "]";
}

void hand_over(const Options& options, const std::vector<Region>& regions, int userfault) {
  const int socket = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::copy_n(options.socket.c_str(), std::min(options.socket.size(), sizeof address.sun_path - 1),
              std::begin(address.sun_path));
  if (socket < 0 || ::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) die("connect");
  std::string text = words_of(options, regions);
  std::vector<int> descriptors{userfault};
  if (options.version == "fork") descriptors.insert(descriptors.end(), {STDERR_FILENO, STDERR_FILENO});
  alignas(cmsghdr) std::array<char, CMSG_SPACE(3 * sizeof(int))> control{};
  iovec part{.iov_base = text.data(), .iov_len = text.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = CMSG_SPACE(descriptors.size() * sizeof(int));
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
  std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size() * sizeof(int));
  if (::sendmsg(socket, &message, MSG_NOSIGNAL) != static_cast<ssize_t>(text.size())) die("sendmsg");
  // Before 1.12 it is closed at once, since then never.
  if (options.version == "1.1" || options.version == "1.7") ::close(socket);
}

/// One page of the guest, and what it should hold.
struct Page {
  std::byte* at;
  const std::byte* original;
  enum class Holds : std::uint8_t { original, zeroes, written } holds = Holds::original;
  std::uint64_t mark = 0;  // of what was written: every word is it, plus the word's number
};

class Guest {
 public:
  Guest(const Options& options, std::vector<Page> pages, std::size_t number)
      : options_(options), pages_(std::move(pages)), random_(options.seed * 1000 + number) {}

  void run(std::size_t steps) {
    for (std::size_t i = 0; i < steps; ++i) step(pages_[random_() % pages_.size()]);
  }
  void check_dropped() {
    for (const Page& page : pages_)
      if (page.holds == Page::Holds::zeroes) check(page, page.at);
  }
  void check_all() {
    for (const Page& page : pages_) check(page, page.at);
  }
  [[nodiscard]] std::size_t bad() const { return bad_; }
  [[nodiscard]] std::size_t dropped() const { return dropped_; }

 private:
  void step(Page& page) {
    const std::size_t dice = random_() % 100;
    if (dice < options_.drop) return drop(page);
    if (dice < options_.drop + 20) return write(page);
    if (dice < options_.drop + 30) return check_by_kernel(page);
    check(page, page.at);
  }

  void write(Page& page) {
    page.holds = Page::Holds::written;
    page.mark = random_();
    for (std::size_t word = 0; word < options_.page() / 8; ++word) {
      const std::uint64_t value = page.mark + word;
      std::memcpy(page.at + 8 * word, &value, sizeof value);
    }
  }

  void drop(Page& page) {
    if (::madvise(page.at, options_.page(), options_.memory == "memfd" ? MADV_REMOVE : MADV_DONTNEED) != 0)
      die("madvise");
    page.holds = Page::Holds::zeroes;
    ++dropped_;
    if (options_.race) check(page, page.at);
  }

  /// A fault that the kernel takes in a system call, as KVM and virtio do.
  void check_by_kernel(Page& page) {
    if (buffer_.empty()) buffer_.resize(options_.page());
    if (file_ < 0) file_ = ::memfd_create("copy", MFD_CLOEXEC);
    if (::pwrite(file_, page.at, options_.page(), 0) != static_cast<ssize_t>(options_.page())) die("pwrite");
    if (::pread(file_, buffer_.data(), options_.page(), 0) != static_cast<ssize_t>(options_.page())) die("pread");
    check(page, buffer_.data());
  }

  void check(const Page& page, const std::byte* bytes) {
    std::size_t wrong = options_.page() / 8;
    for (std::size_t word = 0; word < options_.page() / 8; ++word) {
      std::uint64_t found = 0;
      std::uint64_t wanted = 0;
      std::memcpy(&found, bytes + 8 * word, sizeof found);
      if (page.holds == Page::Holds::original) std::memcpy(&wanted, page.original + 8 * word, sizeof wanted);
      if (page.holds == Page::Holds::written) wanted = page.mark + word;
      if (found == wanted || wrong < word) continue;
      wrong = word;
      std::fprintf(stderr, "word %zu of page %p, which holds %d, is %#lx and not %#lx\n", word,
                   static_cast<void*>(page.at), static_cast<int>(page.holds), found, wanted);
    }
    if (wrong != options_.page() / 8) ++bad_;
  }

  const Options& options_;
  std::vector<Page> pages_;
  std::mt19937_64 random_;
  std::size_t bad_ = 0;
  std::size_t dropped_ = 0;
  int file_ = -1;
  std::vector<std::byte> buffer_;
};

std::vector<Region> map_memory(const Options& options, std::size_t size) {
  std::vector<Region> regions;
  const std::size_t pages = size / options.page();
  for (std::size_t i = 0; i < options.regions; ++i) {
    const std::size_t first = pages * i / options.regions;
    const std::size_t end = pages * (i + 1) / options.regions;
    regions.push_back(map_region(options, (end - first) * options.page(), first * options.page()));
  }
  return regions;
}

std::vector<Guest> make_guests(const Options& options, const std::vector<Region>& regions, const Expected& expected) {
  std::vector<std::vector<Page>> of_thread(options.threads);
  std::size_t number = 0;
  for (const Region& region : regions) {
    for (std::size_t at = 0; at < region.size; at += options.page(), ++number)
      of_thread[number % options.threads].push_back(
          {.at = region.start + at, .original = expected.bytes + region.offset + at});
  }
  std::vector<Guest> guests;
  for (auto& pages : of_thread) guests.emplace_back(options, std::move(pages), guests.size());
  return guests;
}

/// Reads everything again and again, in another order, and does not care what is there.
void touch(const std::vector<Region>& regions, const std::atomic<bool>& stop, std::size_t page, std::size_t seed) {
  std::mt19937_64 random(seed);
  while (!stop.load()) {
    const Region& region = regions[random() % regions.size()];
    [[maybe_unused]] const volatile std::byte seen = region.start[random() % (region.size / page) * page];
  }
}

/// Mappings of single pages, until the kernel allows no more.
void use_up_mappings() {
  constexpr std::size_t kMost = std::size_t{2} << 20U;  // pages, of which every other one becomes a mapping
  void* const all = ::mmap(nullptr, kMost * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (all == MAP_FAILED) die("mmap of room for mappings");
  for (std::size_t i = 1; i < kMost; i += 2) {
    if (::mprotect(static_cast<std::byte*>(all) + i * kPage, kPage, PROT_READ) == 0) continue;
    if (errno == ENOMEM) return;
    die("mprotect");
  }
  std::fprintf(stderr, "vm.max_map_count is higher than %zu\n", kMost);
  std::_Exit(2);
}

/// Ends with SIGBUS, or says what it saw.
[[noreturn]] void drop_a_page(const Region& region) {
  std::byte* const page = region.start + kPage;
  if (::madvise(page, kPage, MADV_DONTNEED) != 0) die("madvise");
  const volatile unsigned char* const seen = reinterpret_cast<unsigned char*>(page);
  std::printf("a dropped page shows %#x\n", *seen);
  std::fflush(stdout);
  std::_Exit(1);
}

bool wait_for_line(const char* said) {
  std::puts(said);
  std::fflush(stdout);
  return std::getchar() != EOF;
}

template <typename Body>
void on_threads(std::vector<Guest>& guests, const Body& body) {
  std::vector<std::thread> threads;
  for (Guest& guest : guests) threads.emplace_back([&] { body(guest); });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  ::alarm(kMostSeconds);
  const Expected expected = map_file(options.file);
  const std::vector<Region> regions = map_memory(options, expected.size);
  const int userfault = open_userfault(regions);
  hand_over(options, regions, userfault);
  if (options.crowded) {
    use_up_mappings();
    drop_a_page(regions.front());
  }
  if (options.wait && !wait_for_line("started")) return 2;
  std::vector<Guest> guests = make_guests(options, regions, expected);
  std::atomic<bool> stop{false};
  std::vector<std::thread> others;
  for (std::size_t i = 0; options.race && i < options.threads; ++i)
    others.emplace_back([&, i] { touch(regions, stop, options.page(), options.seed + 100 + i); });
  if (options.half) {
    on_threads(guests, [&](Guest& guest) {
      guest.run(options.steps / 2);
      guest.check_dropped();
    });
    for (const Region& region : regions)
      std::printf("memory %lx-%lx\n", reinterpret_cast<std::uintptr_t>(region.start),
                  reinterpret_cast<std::uintptr_t>(region.start + region.size));
    if (!wait_for_line("half")) return 2;
  }
  on_threads(guests, [&](Guest& guest) {
    guest.run(options.half ? options.steps - options.steps / 2 : options.steps);
    guest.check_all();
  });
  stop.store(true);
  for (std::thread& other : others) other.join();
  std::size_t bad = 0;
  std::size_t dropped = 0;
  for (const Guest& guest : guests) {
    bad += guest.bad();
    dropped += guest.dropped();
  }
  std::printf("%zu pages, %zu dropped, %zu bad\n", expected.size / options.page(), dropped, bad);
  return bad == 0 ? 0 : 1;
}
