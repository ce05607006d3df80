// A page server for tests of the exec shim alone: one thread, one object whose bytes are shim_pattern.h, the handoff
// protocol as far as the shim speaks it. No FUSE, no supervisor. What it can do that the real one cannot: evict pages
// all the time (--evict), refuse chosen requests, so that every way out of the shim is walked.
//
//   shim_server SOCKET SIZE [--evict] [--data FILE] [--refuse TYPE]...
//
// TYPE is a number of handoff::Type; "3@2" refuses from the third on. --data serves the bytes of a file instead.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <list>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "os/socket.h"
#include "server/handoff_wire.h"
#include "shim_pattern.h"

namespace {

using namespace uffda::handoff;

constexpr uint64_t kPage = 4096;

struct Shown {
  uint64_t end;
  uint64_t offset;
};

struct Client {
  int fd;
  Token token;
  std::map<uint64_t, Shown> ranges;
  std::vector<uint64_t> waiting;  // fault addresses without an answer yet
};

struct Options {
  bool evict = false;
  std::map<int, int> refused_from;  // type -> number of requests that are still answered
};

Options g_options;
int g_cache = -1;
int g_data = -1;
uint64_t g_size = 0;
std::vector<bool> g_present;
std::list<Client> g_clients;
uint64_t g_random = 1;
uint64_t g_token = 0;

[[noreturn]] void die(const char* what) {
  std::perror(what);
  std::exit(1);
}

uint64_t random_number() { return (g_random = g_random * 6364136223846793005u + 1442695040888963407u) >> 33; }

void forget(Client& client, uint64_t start, uint64_t end) {
  auto at = client.ranges.upper_bound(start);
  if (at != client.ranges.begin()) --at;
  while (at != client.ranges.end() && at->first < end) {
    const auto [first, shown] = *at;
    if (shown.end <= start) {
      ++at;
      continue;
    }
    at = client.ranges.erase(at);
    if (first < start) client.ranges[first] = {start, shown.offset};
    if (shown.end > end) at = client.ranges.insert({end, {shown.end, shown.offset + (end - first)}}).first;
  }
}

void move(Client& client, uint64_t from, uint64_t to, uint64_t length) {
  std::map<uint64_t, Shown> moved;
  for (const auto& [first, shown] : client.ranges) {
    const uint64_t start = first > from ? first : from;
    const uint64_t end = shown.end < from + length ? shown.end : from + length;
    if (start < end) moved[start - from + to] = {end - from + to, shown.offset + (start - first)};
  }
  forget(client, from, from + length);
  forget(client, to, to + length);
  client.ranges.merge(moved);
}

void publish(uint64_t page) {
  if (g_present[page]) return;
  uint8_t bytes[kPage];
  const uint64_t offset = page * kPage;
  const uint64_t size = g_size - offset < kPage ? g_size - offset : kPage;
  if (g_data < 0) {
    fill_pattern(bytes, offset, size);
  } else if (pread(g_data, bytes, size, static_cast<off_t>(offset)) != static_cast<ssize_t>(size)) {
    die("pread");
  }
  if (pwrite(g_cache, bytes, size, static_cast<off_t>(offset)) != static_cast<ssize_t>(size)) die("pwrite");
  g_present[page] = true;
}

void evict_some(uint64_t keep) {
  const uint64_t page = random_number() % g_present.size();
  if (page == keep || !g_present[page]) return;
  g_present[page] = false;
  fallocate(g_cache, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(page * kPage), kPage);
}

void evict_all() {
  g_present.assign(g_present.size(), false);
  fallocate(g_cache, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(g_present.size() * kPage));
}

// True: answered, or nobody is there to answer to. False: to be tried again after the client's next event or MAP.
bool resolve(Client& client, uint64_t address) {
  auto at = client.ranges.upper_bound(address);
  if (at == client.ranges.begin()) return false;
  --at;
  if (at->second.end <= address) return false;
  const uint64_t page = (at->second.offset + (address - at->first)) / kPage;
  publish(page);
  uffdio_continue request{};
  request.range = {address, kPage};
  if (ioctl(client.fd, UFFDIO_CONTINUE, &request) != 0) {
    if (errno == EAGAIN || errno == ENOENT) return false;
    if (errno != EEXIST && errno != ESRCH) die("UFFDIO_CONTINUE");
    uffdio_range range{address, kPage};
    ioctl(client.fd, UFFDIO_WAKE, &range);
  }
  if (g_options.evict) evict_some(page);
  return true;
}

void retry(Client& client) {
  std::erase_if(client.waiting, [&](uint64_t address) { return resolve(client, address); });
}

void read_client(Client& client) {
  uffd_msg messages[16];
  while (true) {
    const ssize_t got = read(client.fd, messages, sizeof messages);
    if (got <= 0) break;
    for (size_t i = 0; i < static_cast<size_t>(got) / sizeof messages[0]; ++i) {
      const uffd_msg& message = messages[i];
      if (message.event == UFFD_EVENT_PAGEFAULT) {
        client.waiting.push_back(message.arg.pagefault.address & ~(kPage - 1));
      } else if (message.event == UFFD_EVENT_UNMAP) {
        forget(client, message.arg.remove.start, message.arg.remove.end);
      } else if (message.event == UFFD_EVENT_REMAP) {
        move(client, message.arg.remap.from, message.arg.remap.to, message.arg.remap.len);
      }
    }
  }
  retry(client);
}

Client* find(const Token& token) {
  for (Client& client : g_clients) {
    if (memcmp(&client.token, &token, sizeof token) == 0) return &client;
  }
  return nullptr;
}

void reply(int fd, const void* bytes, size_t size, int passed = -1) {
  const std::span head(static_cast<const std::byte*>(bytes), size);
  (void)uffda::os::send_packet(fd, head, {}, passed, uffda::os::Waiting::until);  // the client may be gone
}

Header answer(Type type, size_t size) {
  return {kMagic, kVersion, static_cast<uint16_t>(static_cast<uint16_t>(type) | kReply), static_cast<uint32_t>(size),
          0};
}

void refuse(int fd) {
  ErrorReply error{};
  error.header = {kMagic, kVersion, static_cast<uint16_t>(Type::kError), sizeof error, 1};
  reply(fd, &error, sizeof error);
}

bool is_refused(uint16_t type) {
  const auto found = g_options.refused_from.find(type);
  return found != g_options.refused_from.end() && found->second-- <= 0;
}

void on_open(int fd) {
  if (g_options.evict) evict_all();
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/fd/%d", g_cache);
  const int cache = open(path, O_RDONLY | O_CLOEXEC);
  OpenReply message{answer(Type::kOpen, sizeof message), g_size, kPage, 0};
  reply(fd, &message, sizeof message, cache);
  close(cache);
}

void on_attach(int fd, int userfaultfd) {
  if (g_options.evict) evict_all();
  AttachReply message{answer(Type::kAttachAs, sizeof message), {}};
  ++g_token;
  memcpy(message.token.bytes, &g_token, sizeof g_token);
  g_clients.push_back({userfaultfd, message.token, {}, {}});
  reply(fd, &message, sizeof message);
}

void on_map(int fd, const MapRequest& request) {
  Client* client = find(request.token);
  const bool sound = client != nullptr && (request.address | request.length | request.offset) % kPage == 0 &&
                     request.length != 0 && request.offset + request.length <= g_present.size() * kPage;
  if (!sound) return refuse(fd);
  read_client(*client);
  forget(*client, request.address, request.address + request.length);
  client->ranges[request.address] = {request.address + request.length, request.offset};
  const Header message = answer(Type::kMap, sizeof message);
  reply(fd, &message, sizeof message);
  retry(*client);
}

void on_device(int fd) {
  const int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (device < 0) return refuse(fd);
  const Header message = answer(Type::kDevice, sizeof message);
  reply(fd, &message, sizeof message, device);
  close(device);
}

// False: the connection is over.
bool serve(int fd) {
  alignas(8) std::byte bytes[1024];
  auto received = uffda::os::receive_packet(fd, bytes, uffda::os::Waiting::until);
  if (!received || received->size < sizeof(Header)) return false;
  Header header;
  memcpy(&header, bytes, sizeof header);
  if (is_refused(header.type)) {
    refuse(fd);
  } else if (header.type == static_cast<uint16_t>(Type::kOpen)) {
    on_open(fd);
  } else if (header.type == static_cast<uint16_t>(Type::kAttachAs)) {
    on_attach(fd, received->descriptor.release());
  } else if (header.type == static_cast<uint16_t>(Type::kMap)) {
    MapRequest request;
    memcpy(&request, bytes, sizeof request);
    on_map(fd, request);
  } else if (header.type == static_cast<uint16_t>(Type::kDevice)) {
    on_device(fd);
  } else {
    refuse(fd);
  }
  return true;
}

int listen_at(const char* path) {
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
  unlink(path);
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || listen(fd, 64) != 0) die(path);
  chmod(path, 0666);
  return fd;
}

void run(int listener) {
  std::vector<int> connections;
  while (true) {
    std::vector<pollfd> waits{{listener, POLLIN, 0}};
    for (const int fd : connections) waits.push_back({fd, POLLIN, 0});
    bool busy = false;
    for (const Client& client : g_clients) {
      waits.push_back({client.fd, POLLIN, 0});
      busy |= !client.waiting.empty();
    }
    poll(waits.data(), waits.size(), busy ? 1 : -1);
    const std::vector<int> open_now = connections;
    for (size_t i = 0; i < open_now.size(); ++i) {
      if (waits[1 + i].revents == 0 || serve(open_now[i])) continue;
      close(open_now[i]);
      std::erase(connections, open_now[i]);
    }
    for (Client& client : g_clients) read_client(client);
    if (waits[0].revents != 0) connections.push_back(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
  }
}

void parse(int argc, char** argv) {
  for (int i = 3; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--evict") g_options.evict = true;
    if (argument == "--data" && i + 1 < argc) g_data = open(argv[++i], O_RDONLY | O_CLOEXEC);
    if (argument == "--refuse" && i + 1 < argc) {
      int type = 0;
      int after = 0;
      std::sscanf(argv[++i], "%d@%d", &type, &after);
      g_options.refused_from[type] = after;
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  g_size = std::strtoull(argv[2], nullptr, 10);
  parse(argc, argv);
  g_present.resize((g_size + kPage - 1) / kPage);
  g_cache = memfd_create("object", MFD_CLOEXEC);
  if (g_cache < 0 || ftruncate(g_cache, static_cast<off_t>(g_size)) != 0 || fchmod(g_cache, 0600) != 0) die("memfd");
  const int listener = listen_at(argv[1]);
  std::puts("ready");
  std::fflush(stdout);
  run(listener);
}
