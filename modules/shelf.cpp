// A memory type that only describes its attributes: it has no get_folio, and answers UFFDIO_CONTINUE through fault(),
// which with UFFDA_FAULT_USERFAULT_CONTINUE looks a folio up and allocates nothing. In C++.
//
//   g++ -std=c++20 -O2 -fPIC -shared shelf.cpp -o shelf.so
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <vector>

#include <uffda-module.h>

namespace {

constexpr std::uint64_t kFolio = 4096;

struct Shelf {
  std::uint64_t object = 0;
  int fd = -1;                       // a memfd: the page cache
  std::vector<unsigned char> there;  // folio by folio: it has been published
  ~Shelf() {
    if (fd >= 0) close(fd);
  }
};

Shelf& of(void* memory) { return *static_cast<Shelf*>(memory); }

void mark(Shelf& shelf, std::uint64_t offset, std::uint64_t length, unsigned char there) {
  for (std::uint64_t i = offset / kFolio; i * kFolio < offset + length; ++i) shelf.there[i] = there;
}

int shelf_create(std::uint64_t object, std::uint64_t size, const char*, void** memory, uffda_error* error) try {
  auto shelf = std::make_unique<Shelf>();
  shelf->object = object;
  shelf->there.resize((size + kFolio - 1) / kFolio);
  shelf->fd = memfd_create("shelf", MFD_CLOEXEC);
  if (shelf->fd < 0 || fchmod(shelf->fd, 0600) != 0 ||
      ftruncate(shelf->fd, static_cast<off_t>(shelf->there.size() * kFolio)) != 0)
    return uffda_fail(error, errno, "a memfd");
  *memory = shelf.release();
  return 0;
} catch (const std::bad_alloc&) {  // exceptions stay on this side
  return -ENOMEM;
}

void shelf_destroy(void* memory) { delete &of(memory); }

// One write of whole folios: who has them mapped sees nothing of it, or all.
int shelf_publish(void* memory, std::uint64_t offset, const void* bytes, std::uint64_t length, uffda_error* error) {
  const char* from = static_cast<const char*>(bytes);
  for (std::uint64_t done = 0; done < length;) {
    const ssize_t written = pwrite(of(memory).fd, from + done, length - done, static_cast<off_t>(offset + done));
    if (written <= 0) return uffda_fail(error, written < 0 ? errno : EIO, "pwrite to the memfd");
    done += static_cast<std::uint64_t>(written);
  }
  mark(of(memory), offset, length, 1);
  return 0;
}

// A hole frees whole pages, and unmaps them everywhere.
int shelf_drop(void* memory, std::uint64_t offset, std::uint64_t length, uffda_error* error) {
  const std::uint64_t whole = (length + kFolio - 1) / kFolio * kFolio;
  if (fallocate(of(memory).fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                static_cast<off_t>(whole)) != 0)
    return uffda_fail(error, errno, "fallocate");
  mark(of(memory), offset, length, 0);
  return 0;
}

int shelf_read(void* memory, std::uint64_t offset, void* buffer, std::uint64_t length, uffda_error* error) {
  const ssize_t got = pread(of(memory).fd, buffer, length, static_cast<off_t>(offset));
  return got == static_cast<ssize_t>(length) ? 0 : uffda_fail(error, got < 0 ? errno : EIO, "pread from the memfd");
}

int shelf_mapping(void* memory, uffda_error*) { return of(memory).fd; }

// For clients of a server: the same file, opened anew for reading only.
int shelf_share(void* memory, uffda_error* error) {
  char path[32];
  std::snprintf(path, sizeof path, "/proc/self/fd/%d", of(memory).fd);
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  return fd >= 0 ? fd : uffda_fail(error, errno, path);
}

int shelf_fault(void* memory, std::uint64_t index, std::uint32_t flags, uffda_folio* folio, uffda_error* error) {
  Shelf& shelf = of(memory);
  if (flags != UFFDA_FAULT_USERFAULT_CONTINUE) return uffda_fail(error, EINVAL, "another fault than CONTINUE's");
  if (index >= shelf.there.size() || shelf.there[index] == 0) return UFFDA_FOLIO_ABSENT;
  folio->object = shelf.object;
  folio->index = index;
  folio->offset = index * kFolio;
  folio->bytes = kFolio;
  folio->locked = 1;  // calls come one at a time, so nothing drops it before it is released
  folio->references = 1;
  return UFFDA_FOLIO_READY;
}

std::int64_t shelf_release(void*, const uffda_folio* folio) { return std::int64_t{folio->references} - 1; }

constexpr uffda_memory_type kShelf{
    .header = UFFDA_HEADER(uffda_memory_type),
    .thread_model = UFFDA_SERIALISED,
    .flags = 0,
    .name = "shelf",
    .help = "a memfd whose table has attributes only",
    .modes = UFFDA_MODE_MISSING | UFFDA_MODE_MINOR,
    .ioctls = UFFDA_IOCTL_CONTINUE | UFFDA_IOCTL_POISON,
    .folio_size = kFolio,
    .create = shelf_create,
    .destroy = shelf_destroy,
    .publish = shelf_publish,
    .drop = shelf_drop,
    .read = shelf_read,
    .mapping = shelf_mapping,
    .share = shelf_share,
    .fault = shelf_fault,
    .get_folio = nullptr,
    .release = shelf_release,
};

}  // namespace

int uffda_module_register(uffda_registry* registry) { return registry->add_memory_type(registry, &kShelf); }
