// SPDX-License-Identifier: Apache-2.0
// catch.cc DIRECTORY: exceptions across libraries, those that are linked and those that are loaded.
#include "throw.hh"
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <exception>
#include <stdexcept>
#include <thread>
#include <typeinfo>
#include <unistd.h>

static void (*thrower)(int);

static std::string caught(void (*fn)(void *), void *arg)
{
	try {
		fn(arg);
		return "nothing";
	} catch (const Failure &f) {
		return std::string("Failure ") + f.what() + " " + std::to_string(f.code);
	} catch (const std::exception &e) {
		return std::string("exception ") + e.what();
	} catch (const std::string &s) {
		return "string " + s;
	} catch (int i) {
		return "int " + std::to_string(i);
	} catch (...) {
		return "something";
	}
}

static void throw_on(void *arg) { thrower((int)(long)arg); }
static void through(void *arg) { call_back(throw_on, arg); }
static void raised(int) { throw std::runtime_error("out of a handler"); }
static void by_signal(void *) { raise(SIGUSR1); }

int main(int argc, char **argv)
{
	std::string dir = argc > 1 ? argv[1] : ".";
	setvbuf(stdout, nullptr, _IONBF, 0);
	thrower = throw_it;
	for (int mode : { 0, RTLD_NOW | RTLD_LOCAL, RTLD_LAZY | RTLD_GLOBAL }) {
		void *h = nullptr;
		if (mode) {
			h = dlopen((dir + "/libthrow2.so").c_str(), mode);
			if (!h) {
				printf("%s\n", dlerror());
				return 1;
			}
			thrower = (void (*)(int))dlsym(h, "throw_it");
		}
		for (long how = 0; how < 5; how++)
			printf("%s | %s\n", caught(throw_on, (void *)how).c_str(), caught(through, (void *)how).c_str());
		auto inside = h ? (int (*)(int))dlsym(h, "catch_inside") : catch_inside;
		printf("inside %d %d\n", inside(0), inside(2));
		auto make = h ? (Shape * (*)(int)) dlsym(h, "make_shape") : make_shape;
		for (int which : { 0, 1 }) {
			Shape *s = make(which);
			printf("%s %d %d\n", s->name().c_str(), dynamic_cast<Square *>(s) != nullptr, typeid(*s) == typeid(Square));
			delete s;
		}
		std::exception_ptr kept;
		std::thread([&] {
			try {
				thrower(1);
			} catch (...) {
				kept = std::current_exception();
			}
			auto touch = h ? (void (*)())dlsym(h, "touch_thread_local") : touch_thread_local;
			touch();
		}).join();
		try {
			std::rethrow_exception(kept);
		} catch (const std::exception &e) {
			printf("from another thread: %s\n", e.what());
		}
		kept = nullptr;
		if (h)
			printf("close %d\n", dlclose(h));
	}
	/* The frame of a signal is in between: needs -fnon-call-exceptions. */
	signal(SIGUSR1, raised);
	printf("%s\n", caught(by_signal, nullptr).c_str());
	thrower = throw_it;
	std::set_terminate([] {
		printf("terminate\n");
		_exit(9);
	});
	[]() noexcept { thrower(0); }();
	return 0;
}
