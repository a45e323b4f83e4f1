/** The promises of every power driver, kept by the redfish one on a service of each reset style. */
import { setupServer } from 'msw/node'
import { afterAll, beforeAll } from 'vitest'
import { redfish } from '../src/redfish.ts'
import { driverConformance } from './conformance.ts'
import { login, VendorBmc, type VendorName } from './redfish-vendor.ts'

const server = setupServer()
beforeAll(() => server.listen({ onUnhandledFrame: 'error' }))
afterAll(() => server.close())

// With a power cycle of its own and values beside the action; without one; with values in an ActionInfo.
for (const name of ['dell-idrac9', 'lenovo-xcc', 'openbmc'] satisfies VendorName[]) {
  driverConformance(redfish, {
    start: async () => {
      const bmc = new VendorBmc(name)
      server.use(bmc.handler)
      const settings = { address: bmc.address, ...login }
      return {
        settings,
        wrongSettings: { ...settings, password: 'wr0ng-secret' },
        power: async () => (bmc.power === 'On' ? 'on' : 'off'),
        [Symbol.asyncDispose]: async () => {},
      }
    },
  })
}
