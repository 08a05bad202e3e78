// SPDX-License-Identifier: Apache-2.0
#include "shape.hh"
shape::~shape() {}
int shape::area(int x) const { return x * V; }
const char *shape::name() const { return V == 1 ? "one" : "two"; }
struct square : shape {
	int area(int x) const override { return x * x + V; }
	const char *name() const override { return V == 1 ? "square one" : "square two"; }
};
error::error(const std::string &s) : std::runtime_error(s), code(V) {}
shape *make_shape(int kind)
{
	if (kind)
		return new square;
	return new shape;
}
int risky(int x)
{
	std::string text = "odd " + std::to_string(x);
	if (x & 1)
		throw error(text);
	return x;
}
int catches(int (*f)(int), int x)
{
	try {
		return f(x);
	} catch (const error &) {
		return -1;
	}
}
int passes(int (*f)(int), int x)
{
	std::string s(x & 63, 'x');
	return f(x) + (int)s.size() * 0;
}
const std::string &tag()
{
	static std::string *s = new std::string("first");
	return *s;
}
