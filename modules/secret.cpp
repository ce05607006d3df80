// A memory type of its own: secret memory, which the kernel takes out of its own page tables (memfd_secret). In C++.
//
//   g++ -std=c++20 -O2 -fPIC -shared secret.cpp -o secret.so
//
// What this memory cannot do decides its table. It has no write(2): contents are stored through a mapping. The kernel
// gives it no MISSING and no MINOR faults, only write-protection without messages (WP under WP_ASYNC, as for any
// memory): so it is filled as a whole before it is mapped. Its pages cannot be punched out: drop refuses, for pages
// that stayed mapped would read as zeroes. And it cannot be opened again for reading only, so no client of a server
// gets it.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <mutex>
#include <new>

#include <uffda-module.h>

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447  // Linux 5.14; off where it is older than 6.5 and secretmem.enable=1 is not given
#endif

namespace {

constexpr std::uint64_t kFolio = 4096;

struct Secret {
  int fd = -1;
  unsigned char* bytes = nullptr;
  std::uint64_t length = 0;  // whole folios
};

Secret& of(void* memory) { return *static_cast<Secret*>(memory); }

void secret_destroy(void* memory) {
  const Secret& secret = of(memory);
  if (secret.bytes != nullptr) munmap(secret.bytes, secret.length);
  if (secret.fd >= 0) close(secret.fd);
  delete &secret;
}

int fail_and_destroy(Secret* secret, uffda_error* error, const char* text) {
  const int number = errno;
  secret_destroy(secret);
  return uffda_fail(error, number, text);
}

int secret_create(std::uint64_t, std::uint64_t size, const char*, void** memory, uffda_error* error) {
  auto* secret = new (std::nothrow) Secret;
  if (secret == nullptr) return -ENOMEM;
  secret->length = (size + kFolio - 1) / kFolio * kFolio;
  secret->fd = static_cast<int>(syscall(SYS_memfd_secret, O_CLOEXEC));
  if (secret->fd < 0)
    return fail_and_destroy(secret, error, "memfd_secret is needed: Linux 5.14, before 6.5 with secretmem.enable=1");
  if (ftruncate(secret->fd, static_cast<off_t>(secret->length)) != 0)
    return fail_and_destroy(secret, error, "ftruncate");
  void* mapped = mmap(nullptr, secret->length, PROT_READ | PROT_WRITE, MAP_SHARED, secret->fd, 0);
  if (mapped == MAP_FAILED)
    return fail_and_destroy(secret, error, "secret memory is locked memory: RLIMIT_MEMLOCK is its limit");
  secret->bytes = static_cast<unsigned char*>(mapped);
  *memory = secret;
  return 0;
}

int secret_publish(void* memory, std::uint64_t offset, const void* bytes, std::uint64_t length, uffda_error*) {
  std::memcpy(of(memory).bytes + offset, bytes, length);
  return 0;
}

int secret_drop(void*, std::uint64_t, std::uint64_t, uffda_error* error) {
  return uffda_fail(error, EOPNOTSUPP, "secret memory cannot be given back page by page");
}

int secret_read(void* memory, std::uint64_t offset, void* buffer, std::uint64_t length, uffda_error*) {
  std::memcpy(buffer, of(memory).bytes + offset, length);
  return 0;
}

int secret_mapping(void* memory, uffda_error*) { return of(memory).fd; }

constexpr uffda_memory_type kSecret{
    .header = UFFDA_HEADER(uffda_memory_type),
    .thread_model = UFFDA_PARALLEL,
    .flags = 0,
    .name = "secret",
    .help = "secret memory (memfd_secret): not even the kernel maps it",
    .modes = UFFDA_MODE_WP,
    .ioctls = UFFDA_IOCTL_WRITEPROTECT,
    .folio_size = kFolio,
    .create = secret_create,
    .destroy = secret_destroy,
    .publish = secret_publish,
    .drop = secret_drop,
    .read = secret_read,
    .mapping = secret_mapping,
    .share = nullptr,
    .fault = nullptr,
    .get_folio = nullptr,
    .release = nullptr,
};

}  // namespace

int uffda_module_register(uffda_registry* registry) { return registry->add_memory_type(registry, &kSecret); }
