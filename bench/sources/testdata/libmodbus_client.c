/* A bare libmodbus client: libmodbus_client PORT REGISTERS SECONDS
 * It reads as fast as it can and prints the number of polls a second. */
#include <modbus.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
	uint16_t words[MODBUS_MAX_READ_REGISTERS];
	if (argc != 4)
		return 2;
	int registers = atoi(argv[2]);
	modbus_t *c = modbus_new_tcp("127.0.0.1", atoi(argv[1]));
	if (!c || modbus_connect(c) != 0)
		return 1;
	long polls = 0;
	double begin = now(), end = begin + atof(argv[3]), at = begin;
	for (; at < end; at = now(), polls++)
		if (modbus_read_registers(c, 0, registers, words) != registers)
			return 1;
	printf("%f\n", polls / (at - begin));
	return 0;
}
