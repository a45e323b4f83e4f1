/**
 * The IPMI codec: pure functions between bytes and facts, for a console and for a BMC, without sockets, clocks or randomness.
 * In the order a session meets them: framing, Open Session and RAKP, keys, sealed packets, messages, chassis data, serial over LAN.
 */
export * from './chassis.ts'
export * from './codes.ts'
export * from './crypto.ts'
export * from './framing.ts'
export * from './message.ts'
export * from './rakp.ts'
export * from './sol-packet.ts'
export * from './suites.ts'
