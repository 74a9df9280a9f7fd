// Runs work on several threads: on those of the OpenMP runtime that torch has loaded, or else on threads started here.
//
// `GOMP_parallel` is exported by libgomp and, for compatibility, by LLVM's and Intel's runtimes. Python passes its address to
// `adafactor_threads`, so that this library is linked to none of them and steps on the threads that torch steps on.

#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

struct Runtime {  // its functions, null where there is none
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*number)() = nullptr, (*count)() = nullptr;
} openmp;

// f(t) for every t < n, on n threads where the runtime has as many. At every call, the same t runs on the same thread.
template <typename F> void on_threads(int n, F f) {
  if (n <= 1) {
    for (int t = 0; t < n; ++t) f(t);
  } else if (openmp.parallel) {
    struct Job { F& f; int n; } job{f, n};
    openmp.parallel(
        [](void* given) {
          const Job& job = *static_cast<Job*>(given);
          for (int t = openmp.number(), step = openmp.count(); t < job.n; t += step) job.f(t);
        },
        &job, unsigned(n), 0);
  } else {
    std::vector<std::thread> others;
    for (int t = 1; t < n; ++t) others.emplace_back([&f, t] { f(t); });
    f(0);
    for (std::thread& other : others) other.join();
  }
}

}  // namespace

extern "C" void adafactor_threads(void* parallel, void* number, void* count) {
  openmp.parallel = reinterpret_cast<decltype(openmp.parallel)>(parallel);
  openmp.number = reinterpret_cast<decltype(openmp.number)>(number);
  openmp.count = reinterpret_cast<decltype(openmp.count)>(count);
}
