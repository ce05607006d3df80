// Cases of shim_probe: children.
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <new>
#include <string>
#include <thread>

#include "shim_pattern.h"
#include "shim_probe.h"

namespace probe {
namespace {

void child_reads() {
  uint8_t* shared = map_file(g_file.size, PROT_READ, MAP_SHARED);
  uint8_t* own = map_file(g_file.size, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  for (size_t page = 0; page < 100; page += 3) own[page * kPage + 1] = 0xEE;
  check_bytes(shared, 10 * kPage);
  CHECK(in_child([&] {
          for (size_t page = 0; page < 100; page += 3) CHECK(own[page * kPage + 1] == 0xEE);
          own[kPage + 1] = 0xDD;
          check_bytes(shared, pages() * kPage);
          check_bytes(own + 100 * kPage, (pages() - 100) * kPage, 100 * kPage);
        }) == 0);
  CHECK(own[kPage + 1] == pattern_byte(kPage + 1));
  check_bytes(shared, pages() * kPage);
  munmap(shared, g_file.size);
  munmap(own, g_file.size);
}

void nested_children() {
  uint8_t* memory = map_file(g_file.size, PROT_READ, MAP_SHARED);
  CHECK(in_child([&] {
          check_random(memory, 100, 1);
          CHECK(in_child([&] {
                  uint8_t* more = map_file(50 * kPage, PROT_READ, MAP_SHARED, 9 * kPage);
                  CHECK(in_child([&] {
                          check_bytes(memory, pages() * kPage);
                          check_bytes(more, 50 * kPage, 9 * kPage);
                          CHECK(munmap(memory, g_file.size) == 0);
                          CHECK(mremap(more, 50 * kPage, 60 * kPage, MREMAP_MAYMOVE) != MAP_FAILED);
                        }) == 0);
                  check_random(memory, 500, 2);
                }) == 0);
          check_random(memory, 500, 3);
        }) == 0);
  munmap(memory, g_file.size);
}

void orphans() {
  uint8_t* memory = map_file(g_file.size, PROT_READ, MAP_SHARED);
  int ends[2];
  CHECK(pipe(ends) == 0);
  CHECK(in_child([&] {
          int parent[2];
          CHECK(pipe(parent) == 0);
          if (fork() != 0) return;
          close(parent[1]);
          char nothing = 0;
          CHECK(read(parent[0], &nothing, 1) == 0);  // the parent is gone
          check_bytes(memory, pages() * kPage);
          CHECK(write(ends[1], "k", 1) == 1);
        }) == 0);
  close(ends[1]);
  char answer = 0;
  CHECK(read(ends[0], &answer, 1) == 1 && answer == 'k');
  close(ends[0]);
  munmap(memory, g_file.size);
}

void children_of_threads() {
  uint8_t* memory = map_file(g_file.size, PROT_READ, MAP_SHARED);
  std::atomic<bool> stop{false};
  std::vector<std::thread> readers;
  for (int i = 0; i < 3; ++i) {
    readers.emplace_back([&, i] {
      uint64_t seed = static_cast<uint64_t>(i) * 1000;
      while (!stop) {
        check_random(memory, 20, ++seed);
        uint8_t* part = map_file(16 * kPage, PROT_READ, MAP_SHARED, (seed % 100) * kPage);
        check_bytes(part, kPage, (seed % 100) * kPage);
        munmap(part, 16 * kPage);
        CHECK(madvise(memory + (seed % 100) * kPage, kPage, MADV_DONTNEED) == 0);
      }
    });
  }
  std::vector<std::thread> forkers;
  for (int i = 0; i < 2; ++i) {
    forkers.emplace_back([&, i] {
      for (int round = 0; round < 20; ++round) {
        CHECK(in_child([&] { check_random(memory, 200, static_cast<uint64_t>(i * 100 + round)); }) == 0);
      }
    });
  }
  for (auto& one : forkers) one.join();
  stop = true;
  for (auto& one : readers) one.join();
  munmap(memory, g_file.size);
}

void plain_fork() {
  uint8_t* memory = map_file(g_file.size, PROT_READ, MAP_SHARED);
  check_bytes(memory, 3 * kPage);
  using ForkCall = pid_t (*)();
  const auto call = reinterpret_cast<ForkCall>(dlsym(RTLD_DEFAULT, "_Fork"));
  if (call != nullptr) CHECK(in_child([&] { check_bytes(memory, pages() * kPage); }, call) == 0);
  // No handler runs at a raw fork: the right bytes, or a signal, never zeroes.
  const auto raw = +[]() -> pid_t { return static_cast<pid_t>(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0)); };
  const int end = in_child([&] { check_bytes(memory, 64 * kPage); }, raw);
  CHECK(end == 0 || end == SIGSEGV);
  CHECK(in_child([&] {
          const int below = in_child([&] { check_bytes(memory, 64 * kPage); }, raw);
          CHECK(below == 0 || below == SIGSEGV);
        }) == 0);
  CHECK(in_child(
            [&] {
              uint8_t* fresh = map_file(g_file.size, PROT_READ, MAP_SHARED);
              check_bytes(fresh, pages() * kPage);
              CHECK(in_child([&] { check_bytes(fresh, pages() * kPage); }) == 0);
            },
            raw) == 0);
  check_bytes(memory, pages() * kPage);
  munmap(memory, g_file.size);
}

// The copy may be made while another thread is inside mmap.
void plain_fork_of_threads() {
  std::atomic<bool> stop{false};
  std::vector<std::thread> mappers;
  for (int i = 0; i < 3; ++i) {
    mappers.emplace_back([&] {
      while (!stop) munmap(map_file(4 * kPage, PROT_READ, MAP_SHARED, 40 * kPage), 4 * kPage);
    });
  }
  const auto raw = +[]() -> pid_t { return static_cast<pid_t>(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0)); };
  for (int i = 0; i < 30; ++i) {
    const auto body = [] {
      auto* memory = static_cast<uint8_t*>(mmap(nullptr, 4 * kPage, PROT_READ, MAP_SHARED, g_file.fd, 99 * kPage));
      CHECK(memory != MAP_FAILED);
      check_bytes(memory, 4 * kPage, 99 * kPage);
    };
    CHECK(in_child(body, raw) == 0);
  }
  stop = true;
  for (auto& one : mappers) one.join();
}

void no_descriptors() {
  CHECK(in_child([] {
          const rlimit few{64, 128};
          CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
          while (dup(g_file.fd) >= 0) continue;
          CHECK(errno == EMFILE);
          auto* memory = static_cast<uint8_t*>(mmap(nullptr, g_file.size, PROT_READ, MAP_SHARED, g_file.fd, 0));
          CHECK(memory != MAP_FAILED);
          check_random(memory, 100, 8);
          CHECK(in_child([&] { check_bytes(memory, pages() * kPage); }) == 0);
          CHECK(dup(g_file.fd) < 0 && errno == EMFILE);
          rlimit now{};
          CHECK(getrlimit(RLIMIT_NOFILE, &now) == 0 && now.rlim_cur == 64);
        }) == 0);
}

void own_wish() {
  uint8_t* memory = map_file(64 * kPage, PROT_READ, MAP_SHARED, 0);
  CHECK(madvise(memory + 8 * kPage, 8 * kPage, MADV_DONTFORK) == 0);
  CHECK(in_child([&] {
          check_bytes(memory, 8 * kPage);
          check_bytes(memory + 16 * kPage, 48 * kPage, 16 * kPage);
        }) == 0);
  CHECK(in_child([&] { (void)*const_cast<volatile uint8_t*>(memory + 9 * kPage); }) == SIGSEGV);
  CHECK(in_child([&] { CHECK(memory[0] == pattern_byte(0)); }) == 0);
  check_bytes(memory, 64 * kPage);
  CHECK(madvise(memory, 64 * kPage, MADV_DOFORK) == 0);
  CHECK(in_child([&] { check_bytes(memory, 64 * kPage); }) == 0);
  munmap(memory, 64 * kPage);
}

// Handlers of the program that touch the memory, and unmap some of it, around the fork.
uint8_t* g_handled = nullptr;
std::atomic<bool> g_handlers_on{false};

void on_prepare() {
  if (g_handlers_on) CHECK(munmap(g_handled + 60 * kPage, kPage) == 0);
}
void on_fork() {
  if (g_handlers_on) check_bytes(g_handled, 60 * kPage, 70 * kPage);
}

void fork_handlers() {
  CHECK(pthread_atfork(on_prepare, on_fork, on_fork) == 0);
  g_handled = map_file(64 * kPage, PROT_READ, MAP_SHARED, 70 * kPage);
  g_handlers_on = true;
  CHECK(in_child([] { check_bytes(g_handled + 61 * kPage, 3 * kPage, 131 * kPage); }) == 0);
  g_handlers_on = false;
  munmap(g_handled, 64 * kPage);
}

uint8_t* g_disturbed = nullptr;
std::atomic<uint64_t>* g_signals = nullptr;  // shared by the processes of one case

void on_disturbance(int) {
  const uint64_t page = (*g_signals)++ * 7 % (pages() - 1);
  CHECK(g_disturbed[page * kPage + 9] == pattern_byte(page * kPage + 9));
}

// Signals all the time, to parent and child: a handler finds the file's bytes at any moment of a fork.
void signals_in_fork() {
  CHECK(in_child([] {
          setpgid(0, 0);
          void* shared = mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
          CHECK(shared != MAP_FAILED);
          g_signals = new (shared) std::atomic<uint64_t>(0);
          signal(SIGUSR1, SIG_IGN);
          g_disturbed = map_file(g_file.size, PROT_READ, MAP_SHARED);
          const pid_t group = getpgrp();
          const pid_t pest = fork();
          if (pest == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            while (kill(-group, SIGUSR1) == 0) {
              // After each signal the others get on with their work, however slow the machine is.
              const uint64_t seen = *g_signals;
              for (int i = 0; i < 1000 && *g_signals == seen; ++i) sched_yield();
              for (int i = 0; i < 20; ++i) sched_yield();
            }
            _exit(0);
          }
          struct sigaction action{};
          action.sa_handler = on_disturbance;
          action.sa_flags = SA_RESTART;
          sigaction(SIGUSR1, &action, nullptr);
          for (int i = 0; i < 20; ++i)
            CHECK(in_child([i] { check_random(g_disturbed, 5, static_cast<uint64_t>(i)); }) == 0);
          signal(SIGUSR1, SIG_IGN);
          CHECK(*g_signals > 0);
          kill(pest, SIGKILL);
          CHECK(waitpid(pest, nullptr, 0) == pest);
        }) == 0);
}

void spawned_programs() {
  uint8_t* memory = map_file(g_file.size, PROT_READ, MAP_SHARED);
  check_random(memory, 10, 5);
  std::string self(4096, 0);
  self.resize(static_cast<size_t>(readlink("/proc/self/exe", self.data(), self.size())));
  std::string served = "--served";
  std::string path = g_file.path;
  std::string one = "whole_file";
  char* arguments[] = {self.data(), path.data(), one.data(), g_file.served ? served.data() : nullptr, nullptr};
  pid_t child = 0;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", 1, 0);
  CHECK(posix_spawn(&child, self.c_str(), &actions, nullptr, arguments, environ) == 0);
  posix_spawn_file_actions_destroy(&actions);
  check_random(memory, 300, 6);
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  const pid_t quick = vfork();
  if (quick == 0) {
    execl("/bin/true", "true", nullptr);
    _exit(1);
  }
  CHECK(waitpid(quick, &status, 0) == quick && status == 0);
  CHECK(in_child([&] { execv(self.c_str(), arguments); }) == 0);
  check_bytes(memory, pages() * kPage);
  munmap(memory, g_file.size);
}

}  // namespace

std::vector<Case> fork_cases() {
  return {{"child_reads", child_reads},
          {"nested_children", nested_children},
          {"orphans", orphans},
          {"children_of_threads", children_of_threads},
          {"plain_fork", plain_fork},
          {"own_wish", own_wish},
          {"plain_fork_of_threads", plain_fork_of_threads},
          {"no_descriptors", no_descriptors},
          {"fork_handlers", fork_handlers},
          {"signals_in_fork", signals_in_fork},
          {"spawned_programs", spawned_programs}};
}

}  // namespace probe
