// SPDX-License-Identifier: Apache-2.0
// A library that throws; its static and thread-local objects are ended when it goes.
#include "throw.hh"
#include <cstdio>
#include <stdexcept>
#include <unistd.h>

static int destroyed;
struct Noisy {
	const char *name;
	explicit Noisy(const char *n) : name(n) { dprintf(1, "+%s\n", name); }
	~Noisy()
	{
		destroyed++;
		dprintf(1, "-%s\n", name);
	}
};
static Noisy global("a static object");
static thread_local Noisy local("a thread's object");

Shape::~Shape() {}
std::string Shape::name() const { return "shape"; }
std::string Square::name() const { return "square"; }
const char *Failure::what() const noexcept { return "a failure of the library's"; }

void throw_it(int how)
{
	Noisy here("a local object");
	switch (how) {
	case 0:
		throw Failure(42);
	case 1:
		throw std::runtime_error("of the standard library's");
	case 2:
		throw 7;
	case 3:
		throw std::string("text");
	}
}

int catch_inside(int how)
{
	try {
		throw_it(how);
	} catch (const Failure &f) {
		return f.code;
	} catch (...) {
		return -1;
	}
	return 0;
}

Shape *make_shape(int which)
{
	if (which)
		return new Square;
	return new Shape;
}
int last_destroyed() { return destroyed; }
void touch_thread_local() { dprintf(1, "%s\n", local.name); }
